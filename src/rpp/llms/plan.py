"""Batching: prompts as trees, trees in forward passes, passes in batches that fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rpp.llms.decoder import Decoder
from rpp.llms.tree import Tree, batches, group

CPU_PASS = 4096
"""Tokens per forward pass on a CPU, where larger passes are no faster."""

CPU_ROWS = 32
"""Replies generated at once on a CPU, likewise."""


@dataclass(frozen=True)
class Batch:
    """Prompts with keys and values in memory at the same time.

    Attributes:
        passes: Trees of each forward pass.
        rows_of: For every tree, its prompts.
        build: Makes the tree of some prompts.
    """

    passes: list[list[Tree]]
    rows_of: list[list[int]]
    build: Callable[[Sequence[int]], Tree]

    @property
    def rows(self) -> list[int]:
        """Prompts, in the order of the trees."""
        return [row for rows in self.rows_of for row in rows]

    def halves(self) -> list[Batch]:
        """Two batches with fewer passes, smaller passes or smaller trees; none for one prompt."""
        if len(self.rows) == 1:
            return []
        passes, rows_of = self.passes, self.rows_of
        if len(rows_of) == 1:
            rows, half = rows_of[0], len(rows_of[0]) // 2
            rows_of = [rows[:half], rows[half:]]
            passes = [[self.build(part)] for part in rows_of]
        elif len(passes) == 1:
            half = len(passes[0]) // 2
            passes = [passes[0][:half], passes[0][half:]]
        first, second = passes[: len(passes) // 2], passes[len(passes) // 2 :]
        n_trees = sum(map(len, first))
        return [
            Batch(first, rows_of[:n_trees], self.build),
            Batch(second, rows_of[n_trees:], self.build),
        ]


def plan(
    decoder: Decoder,
    prompt_ids: Sequence[list[int]],
    continuation_ids: Sequence[Sequence[list[int]]],
    *,
    room: int,
    max_bytes: int,
    share: bool,
) -> list[Batch]:
    """Divide prompts into batches.

    Args:
        decoder: The network they are for.
        prompt_ids: Tokens of each prompt.
        continuation_ids: Tokens of its continuations; ``[[]]`` for none.
        room: Tokens that may be generated after each prompt.
        max_bytes: Memory besides the weights.
        share: Whether prompts with a common prefix share a tree.

    Returns:
        Batches; every prompt is in one of them, one that does not fit alone in its batch.
    """
    on_cpu = decoder.device.type == "cpu"
    in_blocks = decoder.in_blocks and not room  # without padding, and without the other pairs
    groups = [[row] for row in range(len(prompt_ids))]
    if share:
        sizes = [
            len(h) + sum(map(len, row)) for h, row in zip(prompt_ids, continuation_ids, strict=True)
        ]
        widest = CPU_PASS if on_cpu else 4 * CPU_PASS
        while widest > 1 and decoder.n_bytes(widest, 1) > max_bytes:
            widest //= 2
        pair_cost = 0.0 if in_blocks else decoder.pair_cost
        groups = group(prompt_ids, sizes, pair_cost=pair_cost, max_size=widest)

    def build(rows: Sequence[int]) -> Tree:
        tree = Tree()
        for row in rows:
            for ids in continuation_ids[row]:
                tree.add(prompt_ids[row] + ids)
        return tree

    def keeps(rows: Sequence[int]) -> int:
        """Key-value positions for generation after some prompts."""
        return len(rows) * (max(len(prompt_ids[row]) for row in rows) + room) if room else 0

    def split(rows: list[int]) -> list[list[int]]:
        """A tree's prompts in parts whose generation fits into memory."""
        size = max(len(prompt_ids[row]) for row in rows)
        if len(rows) == 1 or decoder.n_bytes(size, 1, keeps(rows)) <= max_bytes:
            return [rows]
        half = len(rows) // 2
        return split(rows[:half]) + split(rows[half:])

    groups = [part for rows in groups for part in split(rows)]
    trees = [build(rows) for rows in groups]

    def passes(width: int, numbers: Sequence[int]) -> bool:
        """Whether some trees fit into one forward pass."""
        n_nodes = sum(lengths[k] for k in numbers) if in_blocks else width * len(numbers)
        if on_cpu and n_nodes > CPU_PASS:
            return False
        return decoder.n_bytes(width, len(numbers)) <= max_bytes

    def fits(width: int, numbers: Sequence[int]) -> bool:
        """Whether the keys and values of some trees' texts fit into memory."""
        if not room:
            return passes(width, numbers)
        rows = [row for k in numbers for row in groups[k]]
        if on_cpu and len(rows) > CPU_ROWS:
            return False
        return decoder.n_bytes(width, len(numbers), keeps(rows)) <= max_bytes

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
                build,
            )
        )
    return planned
