"""Provenance: what the weights of a checkpoint belong to, and when they are refused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rpp.types import InputError

PROVENANCE, ENVIRONMENT, REFINEMENTS = "provenance", "environment", "refinements"
"""Keys of a checkpoint beside Lightning's own."""

REMEDIES = {
    "data set": "use the data settings it was trained with",
    "patterns": "use its training's patterns file, unchanged, and likewise model.learn,"
    " n_sentences and history_lengths",
    "learner": "set model.class_path and its init_args as in its training",
    "prompt encoder": "set model.init_args.prompt_encoder to it",
    "prompt encoding": "set model.init_args.prompt_encoding to the other value",
    "pooling": "set model.init_args.pooling to the other value",
    "collaborative vectors": "restore the collaborative.safetensors of the training run",
}
"""What must be the same, and what to do where it is not."""

UNCHECKED = ("data name", "patterns file")
"""Told in messages; files may be moved and renamed."""


def tensor_fingerprint(tensor: Tensor) -> str:
    """Names the content of a tensor."""
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:16]


def read_provenance(checkpoint: Mapping[str, Any]) -> dict[str, str]:
    """Provenance of a checkpoint.

    Raises:
        InputError: If it was not written by a prompt learner of this version.
    """
    provenance = checkpoint.get(PROVENANCE)
    if isinstance(provenance, dict):
        return provenance
    if "rpp" in checkpoint:
        raise InputError("this checkpoint was written by an earlier version of rpp: fit again")
    raise InputError("this checkpoint was not written by a prompt learner: fit one first")


def check_provenance(theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    """Refuse weights that belong to something else.

    Args:
        theirs: Provenance of the checkpoint.
        ours: That of this run.

    Raises:
        InputError: If they differ, with what to do.
    """
    for key in [key for key in ours if key not in UNCHECKED]:
        if theirs.get(key) == ours[key]:
            continue
        remedy = REMEDIES.get(key, "use the settings it was trained with")
        raise InputError(
            f"the checkpoint belongs to another {key} ({theirs.get(key, 'unknown')};"
            f" {theirs.get('data name')}, {theirs.get('patterns file')}) than this run"
            f" ({ours[key]}; {ours['data name']}, {ours['patterns file']}): {remedy},"
            " or fit again"
        )


def check_shapes(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Refuse weights of other sizes.

    Args:
        theirs: Weights of the checkpoint by name.
        ours: Those of this run.

    Raises:
        InputError: If names or shapes differ.
    """
    then, now = ({k: tuple(v.shape) for k, v in each.items()} for each in (theirs, ours))
    if then == now:
        return
    name = min(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    raise InputError(
        f"the checkpoint's weights are of other sizes than this run's ({name}: {then.get(name)} and"
        f" {now.get(name)}): set model.init_args as in its training (hidden_dim, n_steps,"
        " n_prompts), or fit again"
    )


def environment_changes(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """How two environments differ, in words; empty if they do not."""
    return "; ".join(
        f"{key} {then.get(key)} and not {now.get(key)}"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key)
    )
