"""Which prompts go through the network together: as trees, in passes and batches that fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rpp.llms.decoder import Decoder
from rpp.llms.tree import Tree, batches, group

CPU_PASS = 4096
"""Padded tokens that pass through the network at once on a CPU, where more is no faster."""

CPU_ROWS = 32
"""Replies written at once on a CPU, likewise."""


@dataclass(frozen=True)
class Batch:
    """Prompts whose keys and values are in memory at the same time.

    Attributes:
        passes: Trees that go through the network together.
        rows_of: For every tree, the prompts it holds.
    """

    passes: list[list[Tree]]
    rows_of: list[list[int]]

    @property
    def rows(self) -> list[int]:
        """Prompts, in the order the trees hold them."""
        return [row for rows in self.rows_of for row in rows]

    def halves(self) -> list[Batch]:
        """The same trees in two batches of fewer passes or smaller ones; itself with one tree."""
        passes = self.passes
        if len(passes) == 1:
            half = len(passes[0]) // 2
            passes = [part for part in (passes[0][:half], passes[0][half:]) if part]
        first, second = passes[: len(passes) // 2], passes[len(passes) // 2 :]
        n_trees = sum(map(len, first))
        halves = [Batch(first, self.rows_of[:n_trees]), Batch(second, self.rows_of[n_trees:])]
        return [half for half in halves if half.passes]


def plan(
    decoder: Decoder,
    heads: Sequence[list[int]],
    tails: Sequence[Sequence[list[int]]],
    *,
    room: int,
    max_bytes: int,
    share: bool,
) -> list[Batch]:
    """Put prompts into batches.

    Args:
        decoder: The network they are for.
        heads: Tokens of each prompt.
        tails: Tokens that follow it, each on its own; ``[[]]`` for none.
        room: Tokens that may be written after each prompt.
        max_bytes: Memory beside the weights.
        share: Whether prompts that begin alike share a tree.

    Returns:
        Batches; every prompt is in one of them. One that does not fit is in a batch of its own.
    """
    on_cpu = decoder.device.type == "cpu"
    groups = [[row] for row in range(len(heads))]
    if share:
        sizes = [len(h) + sum(map(len, row)) for h, row in zip(heads, tails, strict=True)]
        widest = CPU_PASS if on_cpu else 4 * CPU_PASS
        while widest > 1 and decoder.n_bytes(widest, 1) > max_bytes:
            widest //= 2
        groups = group(heads, sizes, pair_cost=decoder.pair_cost, max_size=widest)
    trees = []
    for rows in groups:
        trees.append(Tree())
        for row in rows:
            for tail in tails[row]:
                trees[-1].add(heads[row] + tail)

    def passes(width: int, numbers: Sequence[int]) -> bool:
        """Whether some trees may go through the network together."""
        if on_cpu and width * len(numbers) > CPU_PASS:
            return False
        return decoder.n_bytes(width, len(numbers)) <= max_bytes

    def fits(width: int, numbers: Sequence[int]) -> bool:
        """Whether there is memory for the keys and values of some trees' texts."""
        if not room:
            return passes(width, numbers)
        rows = [row for k in numbers for row in groups[k]]
        if on_cpu and len(rows) > CPU_ROWS:
            return False
        kept = len(rows) * (max(len(heads[row]) for row in rows) + room)
        return decoder.n_bytes(width, len(numbers), kept) <= max_bytes

    lengths = [len(tree) for tree in trees]
    planned = []
    for numbers in batches(lengths, fits):
        parts = [
            [numbers[k] for k in part] for part in batches([lengths[k] for k in numbers], passes)
        ]
        planned.append(
            Batch(
                [[trees[k] for k in part] for part in parts],
                [groups[k] for part in parts for k in part],
            )
        )
    return planned
