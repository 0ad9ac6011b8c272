"""Prompt trees: texts with common prefixes, in which every common token is computed once.

Prompts of one user share history and candidates; continuations of one prompt share the prompt. A
tree is one sequence in which every token attends only to the earlier tokens of *its own path*. One
forward pass of the tree gives the same result as separate passes of its texts.
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
    """Token sequences merged at their common prefixes.

    Attributes:
        tokens: Token of every node; a parent comes before its children.
        parents: Parent of every node, -1 for a first token.
        depths: Position of every node in its text, from 0.
        paths: For every sequence, in the order added, the nodes of its tokens.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    paths: list[list[int]] = field(default_factory=list)
    _children: dict[tuple[int, int], int] = field(default_factory=dict, repr=False)

    def add(self, sequence: Sequence[int]) -> None:
        """Add a sequence; a prefix shared with earlier ones is not stored again."""
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

    @property
    def is_text(self) -> bool:
        """Whether nothing branches: an ordinary text, each token of which sees all before it."""
        return self.parents == list(range(-1, len(self) - 1))

    def visible(self) -> NDArray[np.bool_]:
        """Attention mask, ``(N, N)``: each node sees itself and its ancestors."""
        seen = np.eye(len(self), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node, : parent + 1] |= seen[parent, : parent + 1]
        return seen


@dataclass(frozen=True)
class TreeBatch:
    """Input of a decoder: trees, right-padded to ``N`` nodes.

    Attributes:
        ids: Tokens, ``(B, N)``.
        positions: Position of each in its text, ``(B, N)``.
        mask: Additive attention mask, ``(B, 1, N, N)``: 0 or the smallest number; ``None`` for
            ordinary causal attention, whose kernels are faster.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor | None


def batch_trees(trees: Sequence[Tree], pad: int, dtype: torch.dtype) -> TreeBatch:
    """Pad trees to one width at their ends, where no token of theirs sees the padding."""
    width = max(map(len, trees))
    ids = torch.full((len(trees), width), pad)
    for row, tree in enumerate(trees):
        ids[row, : len(tree)] = torch.tensor(tree.tokens)
    if all(tree.is_text for tree in trees):
        return TreeBatch(ids, torch.arange(width).expand_as(ids), None)
    positions = torch.zeros_like(ids)
    visible = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
    for row, tree in enumerate(trees):
        positions[row, : len(tree)] = torch.tensor(tree.depths)
        visible[row, : len(tree), : len(tree)] = torch.from_numpy(tree.visible())
    return TreeBatch(ids, positions, attention_mask(visible, dtype))


def attention_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive attention mask: 0, or the smallest number where attention is masked.

    Args:
        visible: Which positions each token sees, ``(B, N, K)``.
        dtype: Precision of the scores.

    Returns:
        Shape ``(B, 1, N, K)``, for all heads.
    """
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common prefix of two sequences."""
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
    """Group prompts into trees where this saves time.

    Neighbours in lexicographic order have the longest common prefixes. A prompt joins the tree of
    its neighbour if the tokens saved cost more than the additional attention: a tree computes the
    attention of all pairs of tokens, most of which are masked.

    Args:
        prompt_ids: Tokens of each prompt.
        sizes: Number of tokens of each prompt with its continuations.
        pair_cost: Cost of one attention pair, relative to one token in the linear maps.
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
