"""Attention of prompt trees in blocks of nodes.

A node of a tree sees its own path alone. Attention over the whole tree computes all pairs of nodes,
nearly all of which are masked. Here a block of neighbouring nodes attends to the nodes that one of
them sees, which are few. The sums are the same. Trees lie one behind the other, without padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rpp.llms.tree import Tree, attention_mask

NAME = "rpp_tree"
"""Name of this attention among those of transformers."""

BLOCK = 128
"""Nodes of a block."""


@dataclass(frozen=True)
class Block:
    """Neighbouring nodes, and what they attend to.

    Attributes:
        nodes: Places of the nodes.
        seen: Places that at least one of them sees, ``(C,)``.
        mask: Additive attention mask, ``(1, 1, nodes, C)``.
    """

    nodes: slice
    seen: Tensor
    mask: Tensor


def blocks(trees: Sequence[Tree], dtype: torch.dtype, size: int = BLOCK) -> list[Block]:
    """Blocks of some trees that lie one behind the other.

    Args:
        trees: The trees.
        dtype: Precision of the scores.
        size: Largest number of nodes of a block.
    """
    made, start = [], 0
    for tree in trees:
        visible = torch.from_numpy(tree.visible())
        for first in range(0, len(tree), size):
            rows = visible[first : first + size]
            seen = rows.any(0).nonzero()[:, 0]
            nodes = slice(start + first, start + first + len(rows))
            made.append(Block(nodes, start + seen, attention_mask(rows[None, :, seen], dtype)))
        start += len(tree)
    return made


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    tree_blocks: Sequence[Block] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention function of transformers: by block if blocks are given, else as ``sdpa``."""
    if tree_blocks is None:
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return output
    parts = [
        sdpa_attention_forward(
            module, query[:, :, block.nodes], key[:, :, block.seen], value[:, :, block.seen],
            block.mask, **options,
        )[0]
        for block in tree_blocks
    ]  # fmt: skip
    return torch.cat(parts, dim=1), None


def attend_in_blocks(network: PreTrainedModel) -> bool:
    """Set a network's attention to :func:`tree_attention`, if it is ``sdpa`` and can be set.

    Returns:
        Whether it is set.
    """
    if not getattr(network, "_supports_attention_backend", False):
        return False
    if network.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, tree_attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        network.set_attn_implementation(NAME)
    return bool(network.config._attn_implementation == NAME)
