"""The state: user first, then prompt and ranking; the frozen prompt encoder."""

from __future__ import annotations

import re

import pytest
import torch
from tiny_models import TITLES

from rpp.agents.state import Observation, StateEncoder
from rpp.encoders import PromptEncoder, encode_parts
from rpp.learners.encodings import recall_titles
from rpp.types import InputError, Ranking, failed_ranking

N_ITEMS, ITEM_DIM, PROMPT_DIM, STATE_DIM = 240, 8, 24, 16


@pytest.fixture
def states():
    torch.manual_seed(0)
    return StateEncoder(torch.randn(N_ITEMS, ITEM_DIM) * 0.01, PROMPT_DIM, STATE_DIM)


def rankings_of(episodes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        Ranking(tuple(torch.randperm(len(e.candidates), generator=generator).tolist()), 10, "valid")
        for e in episodes
    ]


def test_first_state_is_the_normalised_user(states):
    users = torch.randn(5, STATE_DIM) * 3 + 1
    state = states.initial(users)
    expected = (users - users.mean(1, keepdim=True)) / users.std(1, keepdim=True, correction=0)
    assert torch.allclose(state, expected, atol=1e-4)
    assert torch.allclose(states.initial(users[2:3])[0], state[2], atol=1e-6)


def test_observation_holds_the_ranked_items_best_first(states, tiny_episodes):
    episodes = tiny_episodes[:3]
    rankings = rankings_of(episodes)
    observation = states.observe(torch.zeros(3, PROMPT_DIM), rankings, episodes)
    scale = states.item_vectors.std()
    for row, ranking, episode in zip(observation.items, rankings, episodes, strict=True):
        for place, k in enumerate(ranking.order):
            expected = states.item_vectors[episode.candidates[k].index] / scale
            assert torch.allclose(row[place], expected)


def test_failed_ranking_is_zeros_and_touches_nobody_else(states, tiny_episodes):
    episodes = tiny_episodes[:3]
    rankings = rankings_of(episodes)
    encodings = torch.randn(3, PROMPT_DIM)
    whole = states.observe(encodings, rankings, episodes)
    rankings[1] = failed_ranking("timeout")
    observation = states.observe(encodings, rankings, episodes)
    assert (observation.items[1] == 0).all()
    assert torch.equal(observation.items[[0, 2]], whole.items[[0, 2]])
    assert torch.equal(observation.prompts, whole.prompts)
    assert states(observation).isfinite().all()


def test_a_batch_of_failures_is_a_state(states, tiny_episodes):
    observation = states.observe(
        torch.zeros(1, PROMPT_DIM), [failed_ranking("timeout")], tiny_episodes[:1]
    )
    assert observation.items.shape == (1, 10, ITEM_DIM)
    assert states(observation).shape == (1, STATE_DIM)


def test_state_does_not_depend_on_the_batch(states, tiny_episodes):
    rankings = rankings_of(tiny_episodes)
    encodings = torch.randn(12, PROMPT_DIM)
    together = states(states.observe(encodings, rankings, tiny_episodes))
    turned = states(states.observe(encodings.flip(0), rankings[::-1], tiny_episodes[::-1]))
    assert together.shape == (12, STATE_DIM)
    assert torch.allclose(turned.flip(0), together, atol=1e-6)
    for k, (ranking, episode) in enumerate(zip(rankings, tiny_episodes, strict=True)):
        alone = states(states.observe(encodings[k : k + 1], [ranking], [episode]))
        assert torch.allclose(alone[0], together[k], atol=1e-6)


def test_order_of_the_ranking_matters(states, tiny_episodes):
    episode = tiny_episodes[0]
    forwards = Ranking(tuple(range(10)), 10, "valid")
    swapped = Ranking((1, 0, *range(2, 10)), 10, "valid")
    observation = states.observe(torch.zeros(2, PROMPT_DIM), [forwards, swapped], [episode] * 2)
    one, other = states(observation)
    assert (one - other).abs().max() > 1e-4


@pytest.fixture
def pooled():
    torch.manual_seed(0)
    return StateEncoder(torch.randn(N_ITEMS, ITEM_DIM) * 0.01, PROMPT_DIM, STATE_DIM, "mean")


def test_mean_pooling_does_not_know_the_order_but_the_items(pooled, tiny_episodes):
    episodes = [tiny_episodes[0]] * 2 + [tiny_episodes[1]]
    rankings = [Ranking(tuple(range(10)), 10, "valid"), *rankings_of(episodes[:2])]
    one, other, elsewhere = pooled(pooled.observe(torch.zeros(3, PROMPT_DIM), rankings, episodes))
    assert torch.allclose(one, other, atol=1e-5)
    assert (one - elsewhere).abs().max() > 0.1


def test_mean_pooling_by_hand(pooled):
    observation = Observation(torch.zeros(2, PROMPT_DIM), torch.randn(2, 10, ITEM_DIM))
    mean = pooled.mean_map(observation.items.sum(1) / 10)
    prompt = pooled.projection(observation.prompts)
    expected = sum(torch.nn.functional.layer_norm(x, (STATE_DIM,)) for x in (prompt, mean))
    assert torch.allclose(pooled(observation), expected, atol=1e-5)
    weights = torch.randn(2, STATE_DIM)
    (pooled(Observation(torch.randn(2, PROMPT_DIM), observation.items)) * weights).sum().backward()
    for name, parameter in pooled.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    assert not any("gru" in name for name in pooled.state_dict())


def test_prompt_matters(states, tiny_episodes):
    rankings = rankings_of(tiny_episodes[:1]) * 2
    observation = states.observe(torch.randn(2, PROMPT_DIM), rankings, tiny_episodes[:1] * 2)
    one, other = states(observation)
    assert (one - other).abs().max() > 0.1


def test_state_is_the_sum_of_two_normalised_terms(states):
    observation = Observation(torch.randn(3, PROMPT_DIM), torch.randn(3, 10, ITEM_DIM))
    prompt = states.projection(observation.prompts)
    _, last = states.gru(observation.items)
    expected = sum(torch.nn.functional.layer_norm(x, (STATE_DIM,)) for x in (prompt, last[0]))
    assert torch.allclose(states(observation), expected, atol=1e-5)


def test_gradients_reach_everything_that_is_trained(states, tiny_episodes):
    observation = states.observe(
        torch.randn(12, PROMPT_DIM), rankings_of(tiny_episodes), tiny_episodes
    )
    weights = torch.randn(12, STATE_DIM)
    (states(observation) * weights).sum().backward()
    named = dict(states.named_parameters())
    assert {name.split(".")[0] for name in named} == {
        "projection", "prompt_norm", "gru", "ranking_norm",
    }  # fmt: skip
    for name, parameter in named.items():
        assert parameter.grad.abs().sum() > 0, name
    assert not states.item_vectors.requires_grad


def test_item_vectors_are_in_no_checkpoint(states):
    assert not any(name.startswith("item") for name in states.state_dict())


def test_item_vectors_without_spread_do_not_break(tiny_episodes):
    states = StateEncoder(torch.ones(N_ITEMS, ITEM_DIM), PROMPT_DIM, STATE_DIM)
    observation = states.observe(
        torch.zeros(12, PROMPT_DIM), rankings_of(tiny_episodes), tiny_episodes
    )
    assert states(observation).isfinite().all()


# Prompt encoder

TEXTS = ["Red Harbour", "x", "I have seen Silent River and Golden Garden", "Ünïcode – 七人の侍"]


@pytest.fixture
def encoder(tiny_bert_folder):
    return PromptEncoder(str(tiny_bert_folder))


def count_calls(encoder):
    """Texts the network is asked for from now on."""
    asked, encode = [], encoder._encode

    def counted(texts):
        asked.extend(texts)
        return encode(texts)

    encoder._encode = counted
    return asked


def test_encoding_is_the_mean_over_the_texts_own_tokens(encoder):
    assert encoder.dim == PROMPT_DIM
    rows = encoder(TEXTS)
    assert rows.shape == (4, PROMPT_DIM)
    assert not rows.requires_grad
    for text, row in zip(TEXTS, rows, strict=True):
        ids = torch.tensor([encoder.tokenizer(text).input_ids])
        with torch.no_grad():
            hidden = encoder.network(input_ids=ids).last_hidden_state[0]
        assert torch.allclose(row, hidden.mean(0), atol=1e-5)


def test_encoding_does_not_depend_on_the_batch(tiny_bert_folder):
    together = PromptEncoder(str(tiny_bert_folder))(TEXTS)
    turned = PromptEncoder(str(tiny_bert_folder))(TEXTS[::-1])
    assert torch.allclose(turned.flip(0), together, atol=1e-5)
    for text, row in zip(TEXTS, together, strict=True):
        assert torch.allclose(PromptEncoder(str(tiny_bert_folder))([text])[0], row, atol=1e-5)


def test_a_text_is_encoded_once(encoder):
    asked = count_calls(encoder)
    first = encoder([TEXTS[0], TEXTS[0], TEXTS[1]])
    assert sorted(asked) == sorted(TEXTS[:2])
    assert torch.equal(first[0], first[1])
    again = encoder([TEXTS[1], TEXTS[0]])
    assert len(asked) == 2
    assert torch.equal(again, first[[2, 0]])


def test_titles_of_a_data_set_are_encoded_once_for_its_folder(tmp_path, tiny_bert_folder, caplog):
    """Every process once encoded them anew."""
    first, second = (PromptEncoder(str(tiny_bert_folder)) for _ in range(2))
    recall_titles(first, tmp_path, TEXTS)
    asked = count_calls(second)
    recall_titles(second, tmp_path, TEXTS)
    assert torch.equal(second(TEXTS), first(TEXTS))
    assert not asked
    recall_titles(second, tmp_path, [*TEXTS, "new"])
    assert asked == ["new"]
    assert "was made with other titles: making it again" in caplog.text
    cls = PromptEncoder(str(tiny_bert_folder), pooling="cls")
    recall_titles(cls, tmp_path, TEXTS)
    assert not torch.equal(cls(TEXTS), first(TEXTS))
    recall_titles(first, tmp_path / "nowhere", TEXTS)
    assert not (tmp_path / "nowhere").exists()


def test_memory_is_bounded_and_forgets_the_longest_unused(tiny_bert_folder):
    encoder = PromptEncoder(str(tiny_bert_folder), n_kept=3)
    asked = count_calls(encoder)
    encoder(["a", "b", "c"])
    encoder(["a"])
    encoder(["d"])  # b has not been used for the longest time
    assert set(encoder._known) == {"a", "c", "d"}
    encoder(["a", "c", "d"])
    assert len(asked) == 4
    rows = encoder(["e", "f", "g", "h", "i"])  # more than are kept, in one call
    assert rows.shape == (5, PROMPT_DIM)
    assert len(encoder._known) == 3


def test_more_texts_than_one_batch(encoder):
    texts = [f"text number {k}" for k in range(70)]
    rows = encoder(texts)
    assert torch.allclose(rows[67], PromptEncoder(encoder.model)([texts[67]])[0], atol=1e-5)


def test_long_texts_are_cut(tiny_bert_folder):
    encoder = PromptEncoder(str(tiny_bert_folder), max_tokens=8)
    start = "Red Harbour Silent River Golden Garden Broken Letter"
    one, other = encoder([start + " x" * 50, start + " y" * 900])
    assert torch.allclose(one, other, atol=1e-5)


def test_parts_by_hand():
    """Of ten signs in all, a has one, bbb three, cccccc six; encoded by one number each."""
    codes = {"a": 2.0, "bbb": 5.0, "cccccc": 7.0}
    asked = []

    def encode(texts):
        asked.append(texts)
        return torch.tensor([[codes[text], 1.0] for text in texts])

    rows = encode_parts(encode, [("a", "bbb", "cccccc"), ("bbb",), ("a", "a", "bbb")])
    expected = [[0.1 * 2 + 0.3 * 5 + 0.6 * 7, 1], [5, 1], [0.4 * 2 + 0.6 * 5, 1]]
    assert torch.allclose(rows, torch.tensor(expected))
    assert asked == [["a", "bbb", "cccccc"]]  # each once


def test_encoding_by_parts_does_not_depend_on_the_batch(tiny_bert_folder):
    prompts = [(TEXTS[0], TEXTS[1]), (TEXTS[2],), (TEXTS[3], TEXTS[0], TEXTS[2])]
    together = encode_parts(PromptEncoder(str(tiny_bert_folder)), prompts)
    turned = encode_parts(PromptEncoder(str(tiny_bert_folder)), prompts[::-1])
    assert torch.allclose(turned.flip(0), together, atol=1e-5)
    assert not together.requires_grad
    for prompt, row in zip(prompts, together, strict=True):
        alone = encode_parts(PromptEncoder(str(tiny_bert_folder)), [prompt])
        assert torch.allclose(alone[0], row, atol=1e-5)
    whole = PromptEncoder(str(tiny_bert_folder))([TEXTS[2]])
    assert torch.allclose(together[1], whole[0], atol=1e-5)  # one part: the same as the whole


def test_an_encoding_is_the_same_to_the_last_bit_beside_other_texts(tiny_bert_folder):
    """A resumed run meets titles in other batches; it used to end with other numbers."""
    together = dict(zip(TITLES, PromptEncoder(str(tiny_bert_folder))(TITLES), strict=True))
    for some in (TITLES[::-1], TITLES[7:60], TITLES[41:42]):
        for text, row in zip(some, PromptEncoder(str(tiny_bert_folder))(some), strict=True):
            assert torch.equal(row, together[text])


@pytest.mark.parametrize("max_tokens", [3, 8, 20])
def test_texts_as_long_as_can_be_read(tiny_bert_folder, max_tokens):
    encoder = PromptEncoder(str(tiny_bert_folder), max_tokens=max_tokens)
    assert encoder(["River " * k for k in range(1, 60)]).isfinite().all()


def test_encoder_is_frozen(encoder):
    assert not any(p.requires_grad for p in encoder.network.parameters())
    assert not encoder.network.training
    assert not isinstance(encoder, torch.nn.Module)  # in no checkpoint, in no optimizer


def test_missing_encoder_is_named(tmp_path):
    folder = str(tmp_path / "nothing here")
    with pytest.raises(
        InputError, match=f"model '{re.escape(folder)}' is no existing folder"
    ) as caught:
        PromptEncoder(folder)(["a"])
    assert "\n" not in str(caught.value)
