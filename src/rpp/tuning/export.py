"""A tuned adapter on disk: put in its place whole, with what it was made from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rpp.llms.tuned import METADATA_FILE

CARD = """# LoRA adapter of {base_model}, tuned on {data}

Made by `rpp.tuning`: {kind} from the {interactions} of {n_users} users;
{nobody}.
{n_sequences} sequences, {steps} steps, data seed {seed}; it began with {start}.
`tuning.json` beside this file has the scores on validation interactions, how they rose, and hashes
of the users left out.

Use: `environment.llm.init_args.adapter: FOLDER`{use}.

The adapter is licensed like the code of this project. What it was tuned on is not: MovieLens, for
one, may be used for research only, and so may what is derived from it.
"""
"""What lies beside an adapter's weights, in words."""

NOT_SEEN = {
    "training": "nobody who validates or tests the policy, and no one's last two interactions",
    "validation": "nobody who trains, validates or tests the policy, and no one's last interaction",
}
"""What an adapter has not seen, by the split of its targets."""

HIDDEN = ", `environment.decoding: likelihood`,\n`show_candidates: false`, `per_character: false`"
"""How a model is asked that has learnt titles and no lists."""


def put_in_place(place: Path, write: Callable[[Path], None], *, is_first: bool) -> None:
    """Write an adapter beside its place and put it there whole: it may be in use.

    Args:
        place: The adapter's folder.
        write: Writes the adapter into a folder.
        is_first: Of its fit: the adapter of an earlier fit is put aside as ``NAME.previous``.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as temp:
        fresh, former = Path(temp, "fresh"), Path(temp, "former")
        write(fresh)
        if is_first:
            former = place.with_name(f"{place.name}.previous")
            if place.exists():
                shutil.rmtree(former, ignore_errors=True)
        if place.exists():
            place.rename(former)
        fresh.rename(place)


def write_metadata(folder: Path, metadata: Mapping[str, Any], text: str) -> None:
    """Write what an adapter is beside its weights, for programs and for people."""
    for file in folder.glob("*.safetensors"):  # written for the owner alone; it may be shared
        file.chmod(0o644)
    (folder / METADATA_FILE).write_text(json.dumps(metadata, indent=2) + "\n")
    (folder / "README.md").write_text(text, encoding="utf-8")


def note_curve(folder: Path, curve: list[dict[str, float]]) -> None:
    """Tell beside the best adapter how tuning went on."""
    path = folder / METADATA_FILE
    if path.is_file():
        metadata = json.loads(path.read_text()) | {"curve": curve}
        path.write_text(json.dumps(metadata, indent=2) + "\n")


def card(metadata: Mapping[str, Any], *, shows_candidates: bool) -> str:
    """What an adapter is, in words.

    Args:
        metadata: What ``tuning.json`` tells.
        shows_candidates: Whether it was tuned on rankings of listed candidates.
    """
    kind = "rankings of listed candidates" if shows_candidates else "packed histories"
    start, scale = metadata["started_from"], metadata["start_scale"]
    scaled = "" if scale == 1 else f", scaled by {scale:g}"
    told = {"training": "training", "validation": "training and validation"}[metadata["targets"]]
    return CARD.format(
        **metadata,
        interactions=f"{told} interactions",
        nobody=NOT_SEEN[metadata["targets"]],
        kind=kind if metadata["likelihood_weight"] else "targets among candidates",
        start="fresh weights" if start is None else f"the adapter in `{start}`{scaled}",
        use="" if shows_candidates else HIDDEN,
    )
