"""What the parts of the GPU benchmark share: the model, the table, time limits, the report."""

from __future__ import annotations

import gc
import json
import platform
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel

from benchmarks.gpu_measure import (
    COLUMNS,
    Rates,
    Row,
    reading_seconds,
    watching,
)
from benchmarks.gpu_models import (
    LLAMA2_7B,
    SMALL,
    Shape,
    make_llm,
    make_network,
    make_prompts,
)
from rpp.llms.base import first_line
from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.ranker import Decoding, Ranker
from rpp.types import LanguageModelError, Ranking

PLAIN = "transformers' generate, one by one"
REPEAT = 10.0
"""Seconds after which a part that goes on past its time is stopped again."""

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "lightning")


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        shape: Of the model.
        n_users: Prompts of most rows.
        n_grid_users: Users with all prompts of the grid.
        n_alone: Prompts one at a time.
        n_exact: Prompts compared with float32.
        n_tuned: Instructions of a QLoRA step.
        batches: Batch sizes of transformers' ``generate``.
        n_new: Tokens of a reply.
        matrix: Side of the matrices multiplied for the limit.
        trees: Nodes of the trees whose attention is measured.
    """

    shape: Shape
    n_users: int
    n_grid_users: int
    n_alone: int
    n_exact: int
    n_tuned: int
    batches: tuple[int, ...]
    n_new: int
    matrix: int
    trees: tuple[int, ...]


LARGE_SCALE = Scale(LLAMA2_7B, 128, 4, 3, 12, 4, (16, 64, 128), 128, 8192, (512, 2048, 8192))
SMALL_SCALE = Scale(SMALL, 4, 1, 1, 2, 1, (2, 4), 8, 256, (64,))


@dataclass
class Bench:
    """What the parts share: the model, its files, what was measured.

    Attributes:
        scale: How much is measured.
        device: Where.
        folder: Of the model's files.
        rates: Of the device, once they are measured.
        rows: The table.
        notes: Other figures of each part.
        found: Rankings that later rows are compared with, by decoding and display.
    """

    scale: Scale
    device: torch.device
    folder: Path
    rates: Rates = field(default_factory=lambda: Rates({}, float("nan")))
    rows: list[Row] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    found: dict[tuple[Decoding, bool], list[Ranking]] = field(default_factory=dict)

    @cached_property
    def network(self) -> PreTrainedModel:
        """The network in bfloat16, made on the device."""
        return make_network(self.scale.shape, self.device, torch.bfloat16)

    def llm(
        self, network: PreTrainedModel | None = None, **options: Any
    ) -> HuggingFaceLanguageModel:
        """A language model, of this network or loaded from the folder."""
        options = {"dtype": "bfloat16", "max_new_tokens": self.scale.n_new} | options
        return make_llm(self.folder, self.device, network, **options)

    def limit(self, n_tokens: int) -> float:
        """Seconds of the tokens' matrix products."""
        rate = self.rates.matrix.get(str(torch.bfloat16), float("nan"))
        return 2 * self.scale.shape.n_weights * n_tokens / rate

    def add(self, row: Row) -> None:
        """Keep a row and say it."""
        self.rows.append(row)
        print_line(
            f"  {row.way}, {row.precision}: {row.n_prompts / row.seconds:.3g} prompts/s,"
            f" {row.at_once} at once, {row.memory:.2f} GB"
            + ("" if row.agrees is None else f", agrees {row.agrees:.0%}")
        )

    def measure(
        self,
        way: str,
        llm: HuggingFaceLanguageModel,
        decoding: Decoding,
        n: int,
        *,
        show: bool = True,
        grid: bool = False,
        precision: str = "bfloat16",
        reference: Sequence[Ranking] | None = None,
        one_by_one: bool = False,
    ) -> list[Ranking]:
        """Rank in one way, and add its row.

        Args:
            way: Name of the row.
            llm: The language model.
            decoding: How rankings are read out of it.
            n: Users.
            show: Whether prompts list the candidates.
            grid: All prompts of the grid for every user.
            precision: Of the weights.
            reference: Rankings to compare with; these may be of more users.
            one_by_one: A call for every prompt.
        """
        warm = Ranker(llm, decoding, show_candidates=show)
        warm.rank(*make_prompts(warm, min(n, 2)))
        ranker = Ranker(llm, decoding, show_candidates=show)
        prompts, episodes = make_prompts(ranker, n, grid=grid)
        before = n_tokens(llm)
        with watching(self.device) as watch:
            if one_by_one:
                pairs = zip(prompts, episodes, strict=True)
                rankings = [ranker.rank([p], [e])[0] for p, e in pairs]
            else:
                rankings = ranker.rank(prompts, episodes)
        if failed := [ranking.reply for ranking in rankings if ranking.failed]:
            raise LanguageModelError(f"{way}: {len(failed)} prompts without answer: {failed[0]}")
        total = n_tokens(llm) - before
        row = Row(way, precision, len(prompts), total, watch.seconds, self.limit(total))
        row.at_once, row.n_halved, row.memory = watch.at_once, watch.n_halved, watch.memory
        if decoding == "generate":
            lengths = [llm.count_tokens(prompt.text) for prompt in prompts]
            row.floor = self.floor(llm.network, lengths, watch.at_once)
        if reference is not None:
            same = [a.order == b.order for a, b in zip(rankings, reference, strict=False)]
            row.agrees = sum(same) / len(same)
        self.add(row)
        return rankings

    def floor(self, network: PreTrainedModel, lengths: Sequence[int], at_once: int) -> float:
        """Seconds of reading what generating reads."""
        shape = self.scale.shape
        return reading_seconds(
            network,
            self.rates,
            lengths,
            n_new=self.scale.n_new,
            n_passes=-(-len(lengths) // at_once),
            kv_bytes=2 * shape.n_layers * shape.hidden * 2,
        )


def n_tokens(llm: HuggingFaceLanguageModel) -> int:
    """Tokens of prompts and replies so far."""
    return llm.usage.prompt_tokens + llm.usage.reply_tokens


def print_line(text: str) -> None:
    """Print a line at once."""
    Console(width=200, soft_wrap=True).print(text, markup=False, highlight=False)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """End the block with an error after this time, and again where something catches it.

    Raises:
        TimeoutError: Then.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"stopped after {seconds:.0f} s")

    former = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01), REPEAT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def run_part(
    bench: Bench, name: str, part: Callable[[Bench], None], needs: float, left: float
) -> dict[str, Any]:
    """Run a part if it fits into the time; what became of it.

    Args:
        bench: What the parts share.
        name: Of the part.
        part: The part.
        needs: Seconds it is expected to take.
        left: Seconds that are left for all.
    """
    if needs > left:
        print_line(f"{name}: skipped, {needs:.0f} s do not fit into the {left:.0f} s left")
        return {"status": "skipped", "needs": needs, "left": left}
    print_line(f"{name} ({left:.0f} s left)")
    started, status = monotonic(), "done"
    try:
        with limited(left):
            part(bench)
    except Exception as error:  # the other parts do not depend on it
        status = f"failed: {type(error).__name__}: {first_line(error)}"
        print_line("".join(traceback.format_exception(error)[-3:]))
    print_line(f"{name}: {status}, {monotonic() - started:.1f} s")
    gc.collect()
    if bench.device.type == "cuda":
        with suppress(RuntimeError):  # a device that an error has left unusable: others will say so
            torch.cuda.empty_cache()
    return {"status": status, "seconds": monotonic() - started}


def about(bench: Bench) -> dict[str, Any]:
    """Device and versions."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
    on_gpu = bench.device.type == "cuda"
    device = torch.cuda.get_device_name(bench.device) if on_gpu else platform.processor() or "CPU"
    return {
        "device": device,
        "cuda": torch.version.cuda if on_gpu else None,
        "python": platform.python_version(),
        "model": asdict(bench.scale.shape),
        "reply tokens": bench.scale.n_new,
        "versions": versions,
    }


def report(bench: Bench, parts: dict[str, Any], output: Path | None) -> None:
    """Write everything measured so far; again after every part, so that nothing is lost."""
    if output is None:
        return
    output.mkdir(parents=True, exist_ok=True)
    content = {
        "about": about(bench),
        "rates": asdict(bench.rates),
        "parts": parts,
        "rows": [asdict(row) for row in bench.rows],
        "notes": bench.notes,
    }
    (output / "gpu.json").write_text(json.dumps(content, indent=1, default=str) + "\n")
    lines = [list(COLUMNS), ["---"] * len(COLUMNS), *table_cells(bench.rows)]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    (output / "gpu.md").write_text(text, encoding="utf-8")


def table_cells(rows: Sequence[Row]) -> list[list[str]]:
    """The cells of the table."""
    alone = [row.seconds / row.n_prompts for row in rows if row.way == PLAIN]
    return [row.cells(alone[0] if alone else None) for row in rows]
