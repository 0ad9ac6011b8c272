"""Attention of trees in blocks, by hand and against attention over all pairs."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rpp.llms import blocks as module
from rpp.llms.blocks import attend_in_blocks, blocks
from rpp.llms.decoder import Decoder
from rpp.llms.tree import Tree

PROMPT = [7, 8, 9, 1]


def tree_of(*sequences):
    tree = Tree()
    for sequence in sequences:
        tree.add(sequence)
    return tree


def llama():
    """A network with more heads of queries than of keys."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=30, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_blocks_by_hand():
    """7 8 9 and 7 8 5 6 in blocks of three; another tree behind them."""
    first, second = tree_of([7, 8, 9], [7, 8, 5, 6]), tree_of([3, 4])
    made = blocks([first, second], torch.float32, size=3)
    assert [each.nodes for each in made] == [slice(0, 3), slice(3, 5), slice(5, 7)]
    assert [each.seen.tolist() for each in made] == [[0, 1, 2], [0, 1, 3, 4], [5, 6]]
    seen = [(each.mask[0, 0] == 0).int().tolist() for each in made]
    assert seen[1] == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert seen[0] == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def scores(decoder: Decoder) -> list[float]:
    trees = [
        tree_of([*PROMPT, 2], [*PROMPT, 3, 4], [*PROMPT, 5, 6, 7, 8], [7, 8, 2, 2]),
        tree_of([1, 2, 3], [1, 4]),
    ]
    wanted = [
        [([3, 4], [2, 9]), ([3, 5, 6], [3, 4, 1]), ([1], [2]), ([10], [1])],
        [([0, 3], [4, 5]), ([1], [3])],
    ]
    with torch.inference_mode():
        return decoder.log_probs(trees, wanted).tolist()


def test_the_same_numbers_as_over_all_pairs(monkeypatch):
    monkeypatch.setattr(module.blocks, "__defaults__", (2,))
    in_blocks = Decoder(llama(), 0)
    monkeypatch.setattr("rpp.llms.decoder.attend_in_blocks", lambda network: False)
    over_all_pairs = Decoder(llama(), 0)
    assert (in_blocks.in_blocks, over_all_pairs.in_blocks) == (True, False)
    assert scores(in_blocks) == pytest.approx(scores(over_all_pairs), abs=1e-5)


def test_gradients_pass(monkeypatch):
    """The adapter is tuned through the same passes."""
    trees, wanted = [tree_of([*PROMPT, 2], [*PROMPT, 3])], [[([3], [2]), ([3], [3])]]
    gradients = []
    for set_attention in (attend_in_blocks, lambda network: False):
        monkeypatch.setattr("rpp.llms.decoder.attend_in_blocks", set_attention)
        network = llama()
        Decoder(network, 0).log_probs(trees, wanted)[0].backward()
        gradients.append(network.model.layers[0].self_attn.q_proj.weight.grad)
    assert gradients[0].abs().sum() > 0
    assert torch.allclose(*gradients, atol=1e-6)


def test_only_attention_that_can_be_set_is_set():
    eager = llama()
    eager.set_attn_implementation("eager")
    assert not attend_in_blocks(eager)
    fixed = llama()
    fixed._supports_attention_backend = False
    assert not attend_in_blocks(fixed)
    network = llama()
    assert attend_in_blocks(network)
    assert attend_in_blocks(network)  # a second decoder of the same network


def test_generation_goes_on_as_before():
    """Left padding, a cache, and the mask that transformers makes of it."""
    ids, mask = torch.tensor([[0, 0, 7, 8], [5, 6, 7, 8]]), torch.tensor([[0, 0, 1, 1], [1] * 4])
    written = []
    for network in (llama(), llama()):
        if written:
            attend_in_blocks(network)
        options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
        written.append(network.generate(ids, pad_token_id=0, **options).tolist())
    assert written[0] == written[1]
