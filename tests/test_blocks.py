"""Attention of trees in blocks, by hand and against attention over all pairs."""

from __future__ import annotations

import pytest
import torch
import transformers
from helpers import tree_of

from rpp.llms import blocks as module
from rpp.llms.blocks import attend_in_blocks, blocks
from rpp.llms.decoder import Decoder

PROMPT = [7, 8, 9, 1]


SIZES = {
    "vocab_size": 30, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


def network(name="Llama"):
    """A network with more heads of queries than of keys."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, pad_token_id=0)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def over_all_pairs(made):
    """Leave the attention as it is."""
    return False


@pytest.fixture
def short(monkeypatch):
    """Blocks of two nodes, so that a tree has several."""
    monkeypatch.setattr(module.blocks, "__defaults__", (2,))


def test_blocks_by_hand():
    """7 8 9 and 7 8 5 6 in blocks of three."""
    first, second = blocks(tree_of([7, 8, 9], [7, 8, 5, 6]), torch.float32, size=3)
    assert (first.n_nodes, first.seen.tolist()) == (3, [0, 1, 2])
    assert (second.n_nodes, second.seen.tolist()) == (2, [0, 1, 3, 4])
    assert (first.mask[0, 0] == 0).int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert (second.mask[0, 0] == 0).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


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


def test_the_same_numbers_as_over_all_pairs(short, monkeypatch):
    decoder = Decoder(network(), 0)
    assert decoder.in_blocks
    found = scores(decoder)
    assert decoder.in_blocks
    monkeypatch.setattr("rpp.llms.decoder.attend_in_blocks", over_all_pairs)
    assert found == pytest.approx(scores(Decoder(network(), 0)), abs=1e-5)


@pytest.mark.parametrize("name", ["Nemotron", "Doge"])
def test_networks_that_cannot_take_blocks_compute_all_pairs(short, monkeypatch, name):
    """One does not pass blocks on to its attention, the other learns a mask."""
    decoder = Decoder(network(name), 0)
    assert decoder.in_blocks  # nothing it says of itself tells
    found = scores(decoder)
    assert not decoder.in_blocks
    monkeypatch.setattr("rpp.llms.decoder.attend_in_blocks", over_all_pairs)
    assert found == pytest.approx(scores(Decoder(network(name), 0)), abs=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_pass(short, monkeypatch, checkpointing):
    """The adapter is tuned through the same passes."""
    trees, wanted = [tree_of([*PROMPT, 2], [*PROMPT, 3])], [[([3], [2]), ([3, 5], [3, 4])]]
    gradients = []
    for set_attention in (attend_in_blocks, over_all_pairs):
        monkeypatch.setattr("rpp.llms.decoder.attend_in_blocks", set_attention)
        made = network()
        if checkpointing:
            made.activation_checkpointing_enable()
            made.train()
        Decoder(made, 0).log_probs(trees, wanted).sum().backward()
        gradients.append([weight.grad for weight in made.model.layers.parameters()])
    assert all(each.abs().sum() > 0 for each in gradients[0])
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_only_attention_that_can_be_set_is_set():
    eager = network()
    eager.set_attn_implementation("eager")
    assert not attend_in_blocks(eager)
    fixed = network()
    fixed.model._supports_attention_backend = False
    assert not attend_in_blocks(fixed)
    sparse = network()
    sparse.config.index_topk = 4
    assert not attend_in_blocks(sparse)
    made = network()
    assert attend_in_blocks(made)
    assert attend_in_blocks(made)  # a second decoder of the same network


def test_generation_goes_on_as_before():
    """Left padding, a cache, and the mask that transformers makes of it."""
    ids, mask = torch.tensor([[0, 0, 7, 8], [5, 6, 7, 8]]), torch.tensor([[0, 0, 1, 1], [1] * 4])
    written = []
    for made in (network(), network()):
        if written:
            attend_in_blocks(made)
        options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
        written.append(made.generate(ids, pad_token_id=0, **options).tolist())
    assert written[0] == written[1]
