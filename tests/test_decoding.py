"""Scores, greedy, sampled and constrained replies against plain forward passes."""

from __future__ import annotations

import shutil
from collections import Counter

import pytest
import torch
from contracts import OPTIONS, PROMPTS
from helpers import LETTERS
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
)

from rpp.llms.base import LanguageModel
from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.llms.noise import GumbelNoise
from rpp.types import InputError


def naive_score(tiny_llm, head, tail):
    """Sum of log-softmax over the whole sequence, nothing shared and nothing padded."""
    with torch.no_grad():
        logits = tiny_llm.network(input_ids=torch.tensor([head + tail])).logits[0].double()
    log_probs = logits.log_softmax(-1)
    return sum(log_probs[len(head) - 1 + k, token].item() for k, token in enumerate(tail))


def test_scores_are_those_of_a_plain_forward_pass(tiny_llm):
    prefixes = ["", "1. ", "Red ", "a"]
    rows = tiny_llm.score(PROMPTS, OPTIONS, prefixes)
    for prompt, start, texts, row in zip(PROMPTS, prefixes, OPTIONS, rows, strict=True):
        for text, score in zip(texts, row, strict=True):
            tail = tiny_llm.tokenizer(text, add_special_tokens=False).input_ids
            head = tiny_llm.prompt_tokenizer.encode(prompt, start)
            assert score == pytest.approx(naive_score(tiny_llm, head, tail), abs=1e-4)


def test_scores_sum_over_tokens(tiny_llm):
    """Several tokens: the chain rule over the continuation's own tokens."""
    ids = tiny_llm.tokenizer("Red Harbour", add_special_tokens=False).input_ids
    assert len(ids) > 1
    (whole,) = tiny_llm.score(["x"], [["Red Harbour"]])[0]
    head = tiny_llm.prompt_tokenizer.encode("x")
    parts = [naive_score(tiny_llm, head + ids[:k], [ids[k]]) for k in range(len(ids))]
    assert whole == pytest.approx(sum(parts), abs=1e-4)


def test_nothing_cannot_be_scored(tiny_llm):
    with pytest.raises(ValueError, match="nothing to score in ''"):
        tiny_llm.score(["x"], [["A", ""]])


def test_greedy_takes_the_most_probable_token(tiny_llm):
    head = tiny_llm.prompt_tokenizer.encode("What next?")
    written = []
    for _ in range(12):
        with torch.no_grad():
            token = int(
                tiny_llm.network(input_ids=torch.tensor([head + written])).logits[0, -1].argmax()
            )
        if token == tiny_llm.tokenizer.eos_token_id:
            break
        written.append(token)
    expected = tiny_llm.tokenizer.decode(written, skip_special_tokens=True)
    assert tiny_llm.generate(["What next?"]) == [expected]


def test_a_permutation_is_the_greedy_choice_among_what_is_left(tiny_llm):
    """With options of one token: at every line the most probable one that is left."""
    prompts = ["Rank one", "Rank two", "Rank three"]
    expected = []
    for prompt in prompts:
        left, lines = list(LETTERS[:5]), ""
        while left:
            (scores,) = tiny_llm.score([prompt], [left], [lines])
            lines += left.pop(scores.index(max(scores))) + "\n"
        expected.append(lines.rstrip("\n"))
    assert tiny_llm.generate_permutation(prompts, [LETTERS[:5]] * 3) == expected
    assert len(set(expected)) > 1


def test_the_default_permutation_is_the_best_line_among_what_is_left(tiny_llm):
    """The base class scores whole lines, their ends included."""
    (reply,) = LanguageModel.generate_permutation(tiny_llm, ["Rank"], [["A", "Red Harbour", "B"]])
    (scores,) = tiny_llm.score(["Rank"], [["A\n", "Red Harbour\n", "B\n"]])
    best = ["A", "Red Harbour", "B"][scores.index(max(scores))]
    assert reply.split("\n")[0] == best
    assert sorted(reply.split("\n")) == ["A", "B", "Red Harbour"]


def test_sampling_depends_on_seed_and_prompt_alone(make_llm):
    llm = make_llm(temperature=1.0, seed=0)
    again, other = make_llm(temperature=1.0, seed=0), make_llm(temperature=1.0, seed=1)
    assert llm.generate(PROMPTS) == again.generate(PROMPTS[::-1])[::-1]
    assert llm.generate(PROMPTS) != other.generate(PROMPTS)
    assert make_llm(temperature=1e-4).generate(PROMPTS) == make_llm().generate(PROMPTS)


def test_noise_samples_from_the_distribution():
    """The argmax after Gumbel noise has the softmax's frequencies."""
    probs = torch.tensor([0.5, 0.3, 0.2])
    noise = GumbelNoise([f"prompt {k}" for k in range(4000)], seed=0)
    draws = noise(None, probs.log().repeat(4000, 1)).argmax(-1)
    counts = Counter(draws.tolist())
    for token, p in enumerate(probs.tolist()):
        assert counts[token] / 4000 == pytest.approx(p, abs=0.03)  # four standard errors


def test_top_p_leaves_out_the_tail(make_llm):
    assert make_llm(temperature=1.0, top_p=1e-6).generate(PROMPTS) == make_llm().generate(PROMPTS)


def test_reply_length_is_bounded(make_llm):
    llm = make_llm(max_new_tokens=3)
    llm.generate(["a"])
    assert 0 < llm.usage.reply_tokens <= 3


def test_texts_longer_than_a_sliding_window_are_refused(tiny_llm_folder, tmp_path):
    """Every token of a tree sees all before it: such a layer would be computed wrongly."""
    folder = tmp_path / "gemma"
    shutil.copytree(tiny_llm_folder, folder)
    config = Gemma3TextConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=16,
        initializer_range=0.3, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    Gemma3ForCausalLM(config).save_pretrained(folder)
    llm = HuggingFaceLanguageModel(str(folder), dtype="float32", template="none", max_new_tokens=4)
    short, long = "Hi", PROMPTS[0] * 3
    head = llm.prompt_tokenizer.encode(short)
    with torch.no_grad():
        log_probs = llm.network(torch.tensor([head])).logits[0, -1].double().log_softmax(-1)
    expected = [log_probs[llm.prompt_tokenizer.continuation(each)[0]].item() for each in "AB"]
    assert llm.score([short], [["A", "B"]])[0] == pytest.approx(expected, abs=1e-4)
    for ask in (llm.generate, lambda prompts: llm.score(prompts, [["A", "B"]])):
        with pytest.raises(InputError, match="longer than the 16 that some layers of gemma3"):
            ask([long])
    with pytest.raises(InputError, match="longer than the 16"):  # the reply grows out of it
        llm.generate_permutation([short], [[f"Red Harbour {k} of the north" for k in range(9)]])


def test_constrained_decoding_spends_no_pass_on_what_is_no_choice(make_llm, monkeypatch):
    """Ten letters: nine choices, the first of them from the prompt's own pass."""
    llm = make_llm()
    steps = []
    go_on = llm.decoder._continue

    def counted(ids, *rest):
        steps.append(ids.shape[1])
        return go_on(ids, *rest)

    monkeypatch.setattr(llm.decoder, "_continue", counted)
    llm.generate_permutation(["Rank"], [LETTERS])
    assert steps == [2] * 8  # a letter and its line break at once
