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

from rpp.llms.tree import Tree
from rpp.llms.tree import attention_mask as additive

NAME = "rpp_tree"
"""Name of this attention among those of transformers."""

BLOCK = 128
"""Nodes of a block."""


class NoBlocksError(Exception):
    """The network does not hand blocks on to its attention, or makes a mask of its own."""


@dataclass(frozen=True)
class Block:
    """Neighbouring nodes of a tree, and what they attend to.

    Attributes:
        n_nodes: Number of the nodes.
        seen: Nodes that at least one of them sees, ``(C,)``.
        mask: Additive attention mask, ``(1, 1, n_nodes, C)``.
    """

    n_nodes: int
    seen: Tensor
    mask: Tensor


def blocks(tree: Tree, dtype: torch.dtype, size: int = BLOCK) -> list[Block]:
    """Blocks of a tree, in the order of its nodes.

    Args:
        tree: The tree.
        dtype: Precision of the scores.
        size: Largest number of nodes of a block.
    """
    made = []
    for rows in torch.from_numpy(tree.visible()).split(size):
        seen = rows.any(0).nonzero()[:, 0]
        made.append(Block(len(rows), seen, additive(rows[None, :, seen], dtype)))
    return made


def no_mask(dtype: torch.dtype) -> Tensor:
    """What stands for the mask beside blocks, which have their own; networks pass it on as is."""
    return torch.zeros(1, 1, 1, 1, dtype=dtype)


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    tree_blocks: Sequence[Sequence[Block]] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention function of transformers: by block if blocks are given, else as ``sdpa``.

    Args:
        module: The layer.
        query: ``(B, heads, N, width)``; ``B`` is 1 if blocks are given.
        key: ``(B, heads of keys, K, width)``.
        value: The same.
        attention_mask: Additive mask; :func:`no_mask` with blocks.
        tree_blocks: Blocks of trees that lie one behind the other.
        options: Of ``sdpa``.

    Raises:
        NoBlocksError: If blocks have been lost on the way, or a mask has been made.
    """
    n_entries = 0 if attention_mask is None else attention_mask.numel()
    if tree_blocks is None:
        if n_entries == 1 < key.shape[2]:
            raise NoBlocksError
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return output
    if n_entries != 1:
        raise NoBlocksError
    sizes = [sum(block.n_nodes for block in own) for own in tree_blocks]
    trees = zip(
        tree_blocks, *(each.split(sizes, dim=2) for each in (query, key, value)), strict=True
    )
    parts = [
        sdpa_attention_forward(
            module, rows, keys[:, :, block.seen], values[:, :, block.seen], block.mask, **options
        )[0]
        for own, queries, keys, values in trees
        for block, rows in zip(own, queries.split([b.n_nodes for b in own], dim=2), strict=True)
    ]
    return torch.cat(parts, dim=1), None


def attend_in_blocks(network: PreTrainedModel) -> bool:
    """Set a network's attention to :func:`tree_attention`, if it is ``sdpa`` and can be set.

    Returns:
        Whether it is set.
    """
    decoder = network.get_decoder()
    if not getattr(decoder, "_supports_attention_backend", False):
        return False
    config = decoder.config
    if getattr(config, "index_topk", None):  # sparse attention, which looks for the name `sdpa`
        return False
    if config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, tree_attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        decoder.set_attn_implementation(NAME)
    return bool(config._attn_implementation == NAME)
