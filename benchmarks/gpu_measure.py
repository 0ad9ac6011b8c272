"""What the GPU benchmark measures: rates of a device, its memory, the time of a way of ranking."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any
from unittest.mock import patch

import psutil
import torch
from transformers import PreTrainedModel

from rpp.llms import decoding
from rpp.llms.plan import Batch, plan

COLUMNS = (
    "way", "precision", "prompts", "tokens/prompt", "prompts/s", "tokens/s", "x plain generate",
    "x limit's time", "x memory's time", "at once", "halved", "memory GB", "agrees",
)  # fmt: skip


@dataclass(frozen=True)
class Rates:
    """What a device can do.

    Attributes:
        matrix: Floating-point operations a second of large matrix products, by precision.
        memory: Bytes a second that a copy reads and writes.
    """

    matrix: dict[str, float]
    memory: float


@dataclass
class Row:
    """One way of ranking, measured.

    Attributes:
        way: Name of the row.
        precision: Of the weights.
        n_prompts: Prompts ranked.
        n_tokens: Tokens of prompts, continuations and replies, none shared.
        seconds: Time of all.
        limit: Seconds of the tokens' matrix products alone.
        floor: Seconds of reading weights, keys and values for every generated token.
        at_once: Prompts of the largest batch, found from the free memory.
        n_halved: Batches that did not fit and were halved.
        memory: Peak memory in 10^9 bytes, weights included.
        agrees: Share of rankings equal to those of the reference.
    """

    way: str
    precision: str
    n_prompts: int
    n_tokens: int
    seconds: float
    limit: float
    floor: float | None = None
    at_once: int = 1
    n_halved: int = 0
    memory: float = 0.0
    agrees: float | None = None

    def cells(self, plain: float | None) -> list[str]:
        """The table's cells; ``plain`` is seconds a prompt of transformers, one by one."""
        each = self.seconds / self.n_prompts
        return [
            self.way,
            self.precision,
            str(self.n_prompts),
            f"{self.n_tokens / self.n_prompts:.0f}",
            f"{1 / each:.3g}",
            f"{self.n_tokens / self.seconds:,.0f}",
            "" if plain is None else f"{plain / each:,.1f}",
            f"{self.seconds / self.limit:.2f}",
            "" if self.floor is None else f"{self.seconds / self.floor:.2f}",
            str(self.at_once),
            str(self.n_halved),
            f"{self.memory:.2f}",
            "" if self.agrees is None else f"{self.agrees:.0%}",
        ]


@dataclass
class Watch:
    """The batches of a call: how large they were planned, and how many were halved."""

    at_once: int = 0
    n_halved: int = 0
    seconds: float = 0.0
    memory: float = 0.0
    _planned: Callable[..., list[Batch]] = field(default=plan, repr=False)

    def plan(self, *args: Any, **options: Any) -> list[Batch]:
        """Plan as ever, and note the largest batch."""
        batches = self._planned(*args, **options)
        self.at_once = max([self.at_once, *(len(batch.rows) for batch in batches)])
        return batches


@contextmanager
def watching(device: torch.device) -> Iterator[Watch]:
    """Time, peak memory and batches of the block."""
    watch, halves = Watch(), Batch.halves

    def halve(batch: Batch) -> list[Batch]:
        watch.n_halved += 1
        return halves(batch)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    wait(device)
    started = perf_counter()
    with patch.object(decoding, "plan", watch.plan), patch.object(Batch, "halves", halve):
        yield watch
    wait(device)
    watch.seconds = perf_counter() - started
    watch.memory = peak_memory(device)


def wait(device: torch.device) -> None:
    """Wait until the device has done everything it was sent."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> float:
    """Most memory of the device in use, in 10^9 bytes; on a CPU what the process has now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return float(psutil.Process().memory_info().rss) / 1e9


def seconds_of(work: Callable[[], Any], device: torch.device, n: int = 10) -> float:
    """Mean time of some work, once it is warm."""
    for _ in range(2):
        work()
    wait(device)
    started = perf_counter()
    for _ in range(n):
        work()
    wait(device)
    return (perf_counter() - started) / n


def measure_rates(device: torch.device, size: int) -> Rates:
    """Rates of matrix products of this size and of copying as many numbers, random ones."""
    rates = {}
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        rates[str(dtype)] = 2 * size**3 / seconds_of(partial(torch.matmul, a, b), device)
    source = torch.zeros(16 * size**2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = seconds_of(lambda: target.copy_(source), device)
    return Rates(rates, 2 * source.numel() / copied)


def weight_bytes(network: PreTrainedModel) -> int:
    """Bytes of the weights that every generated token reads: all but the embeddings."""
    parts = (network.get_decoder().layers, network.get_output_embeddings())
    return sum(p.numel() * p.itemsize for part in parts for p in part.parameters())


def reading_seconds(
    network: PreTrainedModel,
    rates: Rates,
    lengths: Sequence[int],
    *,
    n_new: int,
    n_passes: int,
    kv_bytes: int,
) -> float:
    """Least time of generating: weights are read once a pass, keys and values for every token.

    Args:
        network: The network.
        rates: Of the device.
        lengths: Tokens of each prompt.
        n_new: Tokens of every reply.
        n_passes: Passes for one new token of every prompt: the number of batches.
        kv_bytes: Bytes of a token's keys and values.
    """
    read = n_passes * n_new * weight_bytes(network)
    read += sum(n_new * length + n_new * (n_new - 1) // 2 for length in lengths) * kv_bytes
    return read / rates.memory
