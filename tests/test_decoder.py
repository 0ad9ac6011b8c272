"""The decoder's passes on a network whose numbers can be computed by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from helpers import tree_of

from rpp.llms.decoder import Decoder
from rpp.llms.lines import Lines
from rpp.types import InputError

# weights[a][b] : weights[a][c] is how much more probable b is than c after token a
WEIGHTS = torch.tensor([[1.0, 1, 1, 1], [1, 1, 4, 2], [1, 6, 1, 2], [1, 3, 2, 4]])


class Bigrams:
    """A network of one layer that knows the last token alone, of a vocabulary of four."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, **config):
        self.config = SimpleNamespace(
            **{"num_attention_heads": 1, "hidden_size": 4, "num_hidden_layers": 1} | config
        )
        self.config.get_text_config = lambda: self.config
        self.config.model_type = "bigrams"

    def get_input_embeddings(self):
        return None

    def get_output_embeddings(self):
        return lambda hidden: hidden @ WEIGHTS.log()

    def get_decoder(self):
        def decode(input_ids, past_key_values=None, **rest):
            if past_key_values is not None:
                kept = input_ids[:, None, :, None].expand(-1, 1, -1, 4).float()
                past_key_values.update(kept, kept, 0)
            return SimpleNamespace(last_hidden_state=torch.eye(4)[input_ids])

        return decode


def test_log_probabilities_by_hand():
    """After 1 come 2 and 3 with 4/8 and 2/8; after 2 come 1 and 3 with 6/10 and 2/10."""
    tree = tree_of([1, 2], [1])
    wanted = [[([0, 1], [2, 3]), ([0], [3])]]  # 1 2 3 after 1, and 3 after 1
    assert Decoder(Bigrams(), 0).log_probs([tree], wanted).tolist() == pytest.approx(
        [math.log(4 / 8 * 2 / 10), math.log(2 / 8)]
    )


def test_a_permutation_by_hand():
    """After 3 the line 1 weighs 3 and the line 2 weighs 2; after 2 it is the other way round."""
    decoder = Decoder(Bigrams(), 0)
    lines = [Lines([[1, 0], [2, 0], [3, 0]]) for _ in range(2)]
    known = decoder.prefill([[tree_of([1, 3])], [tree_of([2])]], 6, last=True)
    assert known.ids.tolist() == [[1, 3], [0, 2]]
    assert known.known.tolist() == [[True, True], [False, True]]
    n_passed = decoder.generate_permutation(known, lines)
    # after the line's end, 0, all are equally probable: the first of those left
    assert [each.order for each in lines] == [[2, 0, 1], [0, 1, 2]]
    assert n_passed == 2 * 2  # the first line and its end, each; the rest follows of necessity


def test_memory_by_hand():
    """8 hidden and 3 intermediate numbers a node, two masks, keys and values of what is kept."""
    decoder = Decoder(Bigrams(intermediate_size=10), 0)
    passing, masks = 5 * 2 * (8 * 4 + 3 * 10) * 4, 2 * 5 * 2 * 5 * 4
    assert decoder.n_bytes(5, 2) == passing + masks
    assert decoder.n_bytes(5, 2, kept=7) == passing + masks + (10 + 2 * 7) * 2 * 1 * 1 * 4 * 4


def test_cost_of_attention_by_hand():
    """Two products a pair and head, each four times as slow; maps of 2*4*4*2 + 3*4*10."""
    assert Decoder(Bigrams(intermediate_size=10), 0).pair_cost == 4 * 2 * 4 / (64 + 120)


def test_a_text_as_long_as_the_window_still_passes():
    decoder = Decoder(Bigrams(sliding_window=3), 0)
    decoder.log_probs([tree_of([1, 2, 3])], [[([2], [1])]])
    with pytest.raises(InputError, match="a text of 4 tokens is longer than the 3"):
        decoder.log_probs([tree_of([1, 2, 3, 1])], [[([3], [1])]])


def test_layers_that_are_not_attention_are_refused():
    with pytest.raises(InputError, match="bigrams has layers that are not attention"):
        Decoder(Bigrams(layer_types=["full_attention", "mamba"]), 0)
