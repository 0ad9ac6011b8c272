"""Forward passes of a decoder: prompt trees, their key-value cache, generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, StaticLayer

from rpp.llms.blocks import NoBlocksError, attend_in_blocks, blocks, no_mask
from rpp.llms.lines import Lines
from rpp.llms.tree import Tree, attention_mask, batch_trees
from rpp.types import InputError

ATTENTION = {"full_attention", "sliding_attention"}

LOGIT_ROWS = 256
"""Positions whose distributions over the vocabulary are in memory at once."""

ATTENTION_COST = 4.0
"""Time of a floating-point operation in attention, relative to a matrix product."""


@dataclass(frozen=True)
class Prefilled:
    """Prompts with cached keys and values, left-padded to ``W`` tokens.

    Attributes:
        ids: Tokens, ``(B, W)``.
        known: Whether a place holds a token of the prompt, ``(B, W)``.
        cache: Keys and values of all positions, or of all but the last, with space for more.
        last: Output of the decoder for the last token, ``(B, D)``.
    """

    ids: Tensor
    known: Tensor
    cache: Cache
    last: Tensor


class Decoder:
    """A frozen causal network and the forward passes of the decodings.

    On a CPU the network's attention is set to :func:`rpp.llms.blocks.tree_attention`, if it can be.

    Args:
        network: The network.
        pad: Padding token.

    Raises:
        InputError: If a layer of the network is not a transformer layer.
    """

    def __init__(self, network: PreTrainedModel, pad: int) -> None:
        self.network = network
        self.pad = pad
        self.device = _entrance(network)
        self.dtype = network.dtype
        config = network.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if not kinds <= ATTENTION or not hasattr(config, "num_attention_heads"):
            raise InputError(
                f"{config.model_type} has layers that are not attention, whose texts cannot be"
                " computed together: serve it (vLLM, SGLang) and use conf/llm/server.yaml"
            )
        # a GPU computes all pairs, by one kernel (benchmarks/gpu_attention.py)
        self.in_blocks = self.device.type == "cpu" and attend_in_blocks(network)
        self.window = _window(config)
        self.hidden = int(config.hidden_size)
        self.n_layers = int(config.num_hidden_layers)
        self.intermediate = int(getattr(config, "intermediate_size", 4 * self.hidden))
        n_heads = int(config.num_attention_heads)
        head_dim = int(getattr(config, "head_dim", None) or self.hidden // n_heads)
        n_kv = int(getattr(config, "num_key_value_heads", None) or n_heads)
        self._kv_size = 2 * self.n_layers * n_kv * head_dim
        maps = 2 * self.hidden * head_dim * (n_heads + n_kv) + 3 * self.hidden * self.intermediate
        # cost of one pair of attention, in that of one token in the linear maps of a layer
        self.pair_cost = ATTENTION_COST * 2 * n_heads * head_dim / maps

    # -- costs -------------------------------------------------------------------------------

    def n_bytes(self, width: int, n_trees: int, kept: int = 0) -> int:
        """Memory that a pass takes beside the weights.

        Args:
            width: Nodes of every tree, padding included; more than attention in blocks needs.
            n_trees: Number of trees.
            kept: Key-value positions kept for generation.
        """
        size = self.dtype.itemsize
        nodes = width * n_trees
        passing = nodes * (8 * self.hidden + 3 * self.intermediate) * size
        masks = 2 * nodes * width * size
        cache = (nodes + 2 * kept) * self._kv_size * size if kept else 0
        return passing + masks + cache

    # -- passes ------------------------------------------------------------------------------

    def _pass(self, trees: Sequence[Tree], cache: DynamicCache | None) -> Tensor:
        """Output of the decoder for every node, ``(B, N, D)``."""
        self._check_depths(trees)
        if self.in_blocks and cache is None:
            try:
                return self._pass_in_blocks(trees)
            except NoBlocksError:  # without blocks this attention is `sdpa`
                self.in_blocks = False
        batch = batch_trees(trees, self.pad, self.dtype)
        hidden: Tensor = self.network.get_decoder()(
            input_ids=batch.ids.to(self.device),
            attention_mask=None if batch.mask is None else batch.mask.to(self.device),
            position_ids=batch.positions.to(self.device),
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        return hidden

    def _pass_in_blocks(self, trees: Sequence[Tree]) -> Tensor:
        """The same by attention in blocks, without padding; ``(B, N, D)``."""
        output: Tensor = self.network.get_decoder()(
            input_ids=torch.tensor([[token for tree in trees for token in tree.tokens]]),
            attention_mask=no_mask(self.dtype),
            position_ids=torch.tensor([[depth for tree in trees for depth in tree.depths]]),
            use_cache=False,
            tree_blocks=[blocks(tree, self.dtype) for tree in trees],
        ).last_hidden_state
        return pad_sequence(output[0].split([len(tree) for tree in trees]), batch_first=True)

    def _check_depths(self, trees: Sequence[Tree]) -> None:
        """Refuse texts longer than the attention window of a layer."""
        if self.window is not None:
            self._check_window(1 + max(depth for tree in trees for depth in tree.depths))

    def _check_window(self, length: int) -> None:
        """Refuse texts longer than the attention window of a layer."""
        assert self.window is not None
        if length > self.window:
            raise InputError(
                f"a text of {length} tokens is longer than the {self.window} that some layers of"
                f" {self.network.config.model_type} look back, for which it cannot be computed"
                " here: show shorter histories, or serve the model (vLLM, SGLang) and use"
                " conf/llm/server.yaml"
            )

    def log_probs(
        self, trees: Sequence[Tree], wanted: Sequence[Sequence[tuple[Sequence[int], Sequence[int]]]]
    ) -> Tensor:
        """Log-probability of continuations, summed over their tokens.

        Args:
            trees: ``B`` trees.
            wanted: For every tree, pairs of the nodes whose distributions are needed, and the
                tokens to score.

        Returns:
            One number per pair, tree by tree, on the CPU in double precision.
        """
        outputs = self._pass(trees, None)
        width, hidden = outputs.shape[1], outputs.flatten(0, 1)
        pairs = [(row, *pair) for row, some in enumerate(wanted) for pair in some]
        places = torch.tensor([row * width + node for row, nodes, _ in pairs for node in nodes])
        tokens = torch.tensor([token for *_, some in pairs for token in some])
        owners = torch.tensor([k for k, (*_, some) in enumerate(pairs) for _ in some])
        order = places.argsort()  # continuations begin at the same node: its distribution is one
        parts = [
            self._token_log_probs(hidden, places[some], tokens[some])
            for some in order.split(LOGIT_ROWS)
        ]
        log_probs = torch.zeros(len(pairs), dtype=torch.float64)
        return log_probs.index_add_(0, owners[order], torch.cat(parts))

    def _token_log_probs(self, hidden: Tensor, places: Tensor, tokens: Tensor) -> Tensor:
        """Log-probability of a token after each of some nodes, on the CPU."""
        nodes, rows = places.unique_consecutive(return_inverse=True)
        after = self.logits(hidden[nodes.to(hidden.device)]).log_softmax(dim=1)
        log_probs: Tensor = after[rows.to(after.device), tokens.to(after.device)].cpu().double()
        return log_probs

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token, ``(B, vocabulary)``, in float32."""
        scores: Tensor = self.network.get_output_embeddings()(hidden)
        return scores.float()

    def prefill(self, passes: Sequence[Sequence[Tree]], room: int, *, last: bool) -> Prefilled:
        """Keys and values of all texts of some trees, in the order of the trees.

        Args:
            passes: Trees that go through the network together.
            room: Tokens that may be generated after each text.
            last: Whether the last token's keys and values are kept as well.
        """
        trees = [tree for some in passes for tree in some]
        paths = [path for tree in trees for path in tree.paths]
        texts = [[tree.tokens[node] for node in path] for tree in trees for path in tree.paths]
        ids, known = _pad_left(texts, self.pad)
        columns = _pad_left(paths, 0)[0]
        width = ids.shape[1]
        n_kept = width if last else width - 1
        cache = Cache(layers=[StaticLayer(width + room) for _ in range(self.n_layers)])
        parts: list[tuple[DynamicCache, Tensor, Tensor]] = []
        outputs = []
        sizes = [sum(len(tree.paths) for tree in some) for some in passes]
        for some, places in zip(passes, columns.split(sizes), strict=True):
            own = DynamicCache()
            hidden = self._pass(some, own)
            rows = torch.tensor([row for row, tree in enumerate(some) for _ in tree.paths])
            outputs.append(hidden[rows.to(hidden.device), places[:, -1].to(hidden.device)])
            parts.append((own, rows[:, None], places[:, :n_kept]))
        for number in range(self.n_layers):
            keys, values = zip(*(_gather(*part, number) for part in parts), strict=True)
            cache.update(torch.cat(keys), torch.cat(values), number)
            for own, _, _ in parts:
                own.layers[number] = DynamicLayer()  # its memory is not needed any more
        return Prefilled(ids.to(self.device), known.to(self.device), cache, torch.cat(outputs))

    # -- constrained decoding ----------------------------------------------------------------

    def generate_permutation(self, prompts: Prefilled, lines: Sequence[Lines]) -> int:
        """Generate every prompt's lines in the order the network prefers.

        Forced tokens need no pass of their own: once the prefix of a line is unique, its other
        tokens are processed together with the next choice, and the last line not at all.

        Returns:
            The number of tokens that passed through the network.
        """
        known, cache = prompts.known, prompts.cache
        scores = self.logits(prompts.last)
        n_passed = 0
        while True:
            pending = [self._choose(row, each) for row, each in zip(scores, lines, strict=True)]
            ids, new = _pad_left(pending, self.pad)
            if ids.shape[1] == 0:
                return n_passed
            n_passed += int(new.sum())
            new = new.to(self.device)
            hidden = self._continue(ids.to(self.device), new, known, cache)
            known = torch.cat([known, new], dim=1)
            scores = self.logits(hidden)

    def _choose(self, scores: Tensor, lines: Lines) -> list[int]:
        """The best allowed token and all forced tokens after it; empty at the end."""
        forced = lines.force()
        if lines.finished:
            return []
        if forced:  # all lines have a common prefix: nothing to choose yet
            return forced
        allowed = lines.allowed()
        best = allowed[int(scores[allowed].argmax())]
        lines.write(best)
        rest = lines.force()
        return [] if lines.finished else [best, *rest]

    def _continue(self, ids: Tensor, new: Tensor, known: Tensor, cache: Cache) -> Tensor:
        """Output of the decoder for the last of some more tokens, ``(B, D)``."""
        width = ids.shape[1]
        if self.window is not None:
            self._check_window(int((known.sum(1) + new.sum(1)).max()))
        before = known[:, None, :].expand(-1, width, -1)
        among = torch.ones(width, width, dtype=torch.bool, device=ids.device).tril()
        among = among & new[:, None, :] | torch.eye(width, dtype=torch.bool, device=ids.device)
        room = cache.get_max_length() - before.shape[2] - width
        visible = functional.pad(torch.cat([before, among], dim=2), (0, room))
        positions = known.sum(1, keepdim=True) + new.cumsum(1) - 1
        hidden: Tensor = self.network.get_decoder()(
            input_ids=ids,
            attention_mask=attention_mask(visible, self.dtype),
            position_ids=positions.clamp(min=0),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return hidden[:, -1]


def _entrance(network: PreTrainedModel) -> torch.device:
    """Device of the input; offloaded weights have no device of their own."""
    hook = getattr(network.get_input_embeddings(), "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return network.device if device is None else torch.device(device)


def _window(config: Any) -> int | None:
    """Smallest attention window of the layers; ``None``: unlimited."""
    kinds = getattr(config, "layer_types", None)
    window: int | None = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    return window if slides else None


def _pad_left(rows: Sequence[Sequence[int]], value: int) -> tuple[Tensor, Tensor]:
    """Left-padded rows of tokens, and the mask of real tokens, ``(B, W)``."""
    numbers = [torch.tensor(row, dtype=torch.long) for row in rows]
    real = [torch.ones(len(row), dtype=torch.bool) for row in rows]
    return (
        pad_sequence(numbers, batch_first=True, padding_value=value, padding_side="left"),
        pad_sequence(real, batch_first=True, padding_value=False, padding_side="left"),
    )


def _gather(
    cache: DynamicCache, rows: Tensor, columns: Tensor, layer: int
) -> tuple[Tensor, Tensor]:
    """Keys and values of one layer at some positions, each ``(B, heads, W, width)``."""
    kept = cache.layers[layer]
    assert isinstance(kept, DynamicLayer)
    assert kept.keys is not None
    assert kept.values is not None
    rows, columns = rows.to(kept.keys.device), columns.to(kept.keys.device)  # layers may be apart
    keys, values = kept.keys[rows, :, columns], kept.values[rows, :, columns]
    return keys.transpose(1, 2), values.transpose(1, 2)
