"""Prompt trees: texts with common beginnings, every common token computed once.

Prompts of one user share the history and the candidates, the continuations of one prompt share
the prompt. Laid out as one sequence in which every token sees the tokens before it *on its own
path* and nothing else, they pass through a decoder together, with the result each would have
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass
class Tree:
    """Token sequences merged where they begin alike.

    Attributes:
        tokens: Token of every node; a parent stands before its children.
        parents: Node before it, -1 for a first token.
        depths: Its place in the text, from 0.
        paths: For every sequence, in the order added, the nodes of its tokens.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    paths: list[list[int]] = field(default_factory=list)
    _children: dict[tuple[int, int], int] = field(default_factory=dict, repr=False)

    def add(self, sequence: Sequence[int]) -> None:
        """Add a sequence; the part it has in common with earlier ones is not stored again."""
        node, path = -1, []
        for depth, token in enumerate(sequence):
            known = self._children.get((node, token))
            if known is None:
                known = len(self.tokens)
                self._children[node, token] = known
                self.tokens.append(token)
                self.parents.append(node)
                self.depths.append(depth)
            node = known
            path.append(node)
        self.paths.append(path)

    def __len__(self) -> int:
        """Number of nodes."""
        return len(self.tokens)

    def visible(self) -> NDArray[np.bool_]:
        """Which nodes each node sees: itself and those before it on its path, ``(N, N)``."""
        seen = np.eye(len(self), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node, : parent + 1] |= seen[parent, : parent + 1]
        return seen


@dataclass(frozen=True)
class TreeBatch:
    """Trees as a decoder takes them, padded at the end to the longest, ``N`` nodes.

    Attributes:
        ids: Tokens, ``(B, N)``.
        positions: Place of each in its text, ``(B, N)``.
        mask: Added to the attention scores, ``(B, 1, N, N)``: 0 or the smallest number.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor


def batch_trees(trees: Sequence[Tree], pad: int, dtype: torch.dtype) -> TreeBatch:
    """Pad trees to one width; a padding token sees itself alone and nothing sees it."""
    width = max(map(len, trees))
    ids = torch.full((len(trees), width), pad)
    positions = torch.zeros_like(ids)
    visible = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
    for row, tree in enumerate(trees):
        ids[row, : len(tree)] = torch.tensor(tree.tokens)
        positions[row, : len(tree)] = torch.tensor(tree.depths)
        visible[row, : len(tree), : len(tree)] = torch.from_numpy(tree.visible())
    return TreeBatch(ids, positions, attention_mask(visible, dtype))


def attention_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores: 0, or the smallest number where nothing is to be seen.

    Args:
        visible: Which places each sees, ``(B, N, K)``.
        dtype: Precision of the scores.

    Returns:
        Shape ``(B, 1, N, K)``, for all heads.
    """
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of tokens two sequences begin with alike."""
    length = min(len(first), len(second))
    different = np.flatnonzero(np.asarray(first[:length]) != np.asarray(second[:length]))
    return int(different[0]) if len(different) else length


def group(
    prompt_ids: Sequence[Sequence[int]],
    sizes: Sequence[int],
    *,
    pair_cost: float,
    max_size: int,
) -> list[list[int]]:
    """Which prompts are worth computing in one tree.

    Neighbours in lexicographic order have the longest beginnings in common. A prompt joins the
    tree of its neighbour if the tokens it saves cost more than the attention it adds: in a tree
    every token attends to all others, most of them for nothing.

    Args:
        prompt_ids: Tokens of each prompt.
        sizes: Number of tokens of each prompt with its continuations.
        pair_cost: Cost of one pair of attention, in that of one token's passage through the
            linear maps.
        max_size: Largest tree.

    Returns:
        Rows of each tree; every row once.
    """
    groups: list[list[int]] = []
    size = 0
    for row in sorted(range(len(prompt_ids)), key=lambda row: list(prompt_ids[row])):
        if groups:
            saved = common_length(prompt_ids[groups[-1][-1]], prompt_ids[row])
            joined = size + sizes[row] - saved
            added = pair_cost * (joined**2 - size**2 - sizes[row] ** 2)
            if saved > added and joined <= max_size:
                groups[-1].append(row)
                size = joined
                continue
        groups.append([row])
        size = sizes[row]
    return groups


def batches(
    sizes: Sequence[int], fits: Callable[[int, Sequence[int]], bool]
) -> Iterator[list[int]]:
    """Trees of similar size in batches that fit.

    Args:
        sizes: Number of nodes of each tree.
        fits: Whether the trees with these numbers may be padded to a width and sent together.
    """
    batch: list[int] = []
    for number in sorted(range(len(sizes)), key=lambda number: sizes[number]):
        if batch and not fits(sizes[number], [*batch, number]):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
