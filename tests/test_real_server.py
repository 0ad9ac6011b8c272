"""The HTTP backend against a real server: llama.cpp's, with SmolLM2."""

from __future__ import annotations

import json

import pytest
from cli_setup import command
from contracts import LanguageModelContract
from helpers import prompts_for

from benchmarks.llama_server import start
from rpp.cli import main
from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.llms.openai import OpenAILanguageModel
from rpp.ranker import Ranker

pytest.importorskip("xllamacpp", reason="llama.cpp's server: pip install -r requirements-dev.txt")
pytestmark = [pytest.mark.real, pytest.mark.usefixtures("no_drawing")]
QUESTION = "Which comes first in the alphabet?\n{}\nAnswer with its letter alone."
OPTIONS = [chr(ord("A") + k) for k in range(10)]


@pytest.fixture(scope="module")
def address():
    running = start()
    yield f"{running.listening_address}/v1"
    del running


@pytest.fixture
def make(address, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = []

    def make(**options):
        settings = {"temperature": 0.0, "max_new_tokens": 8, "grammar": "llama.cpp"} | options
        made.append(OpenAILanguageModel("smollm2", address, **settings))
        return made[-1]

    yield make
    for llm in made:
        llm.close()


class TestLlamaCpp(LanguageModelContract):
    scores = False

    @pytest.fixture
    def llm(self, make):
        return make()


def test_first_tokens_are_those_of_the_same_model_in_this_process(make):
    prompts = [QUESTION.format("\n".join(order)) for order in (OPTIONS[:3], OPTIONS[2::-1])]
    ours = HuggingFaceLanguageModel(dtype="float32").score(prompts, [OPTIONS[:3]] * 2)
    theirs = make(top_logprobs=200).score(prompts, [OPTIONS[:3]] * 2)
    for row, other in zip(ours, theirs, strict=True):
        assert row == pytest.approx(other, abs=0.25)  # llama.cpp rounds activations to 8 bits


def test_a_grammar_gives_permutations_and_nothing_else(make):
    llm = make()
    prompts = [QUESTION.format("\n".join(OPTIONS)), "Write a poem about the sea.", "x"]
    options = [OPTIONS, OPTIONS[:4], ["Red Harbour", "Red", 'The "Blue" Mirror', "七人の侍"]]
    replies = llm.generate_permutation(prompts, options)
    for reply, lines in zip(replies, options, strict=True):
        assert sorted(reply.split("\n")) == sorted(lines)
    assert llm.generate_permutation(prompts[::-1], options[::-1]) == replies[::-1]


@pytest.mark.parametrize("decoding", ["generate", "constrained", "first_token"])
def test_every_decoding_ranks(make, tiny_episodes, decoding):
    ranker = Ranker(make(top_logprobs=200), decoding)
    answer = "titles" if decoding == "generate" else "identifiers"
    rankings = ranker.rank(prompts_for(tiny_episodes[:2], answer), tiny_episodes[:2])
    assert [sorted(ranking.order) for ranking in rankings] == [list(range(10))] * 2
    assert decoding != "constrained" or {ranking.status for ranking in rankings} == {"valid"}
    counters = ranker.counters
    assert counters.calls == 2
    assert counters.failed == 0
    assert counters.prompt_tokens > 0 < counters.reply_tokens


def test_what_the_server_refuses_is_said(make):
    (refused,) = make(max_retries=0).generate(["word " * 3000])
    assert "status 400: request (" in str(refused)
    assert "exceeds the available context size" in str(refused)


def test_fit_and_test(here, address, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    options = [
        *("--config", "conf/llm/server.yaml", "--environment.llm.base_url", address),
        *("--environment.decoding", "first_token", "--environment.cache_dir", "replies"),
        *("--environment.llm.top_logprobs", "2000", "--environment.llm.concurrency", "2"),
        *("--data.n_train_users", "2", "--data.n_validation_users", "1"),
        *("--data.n_test_users", "1", "--trainer.max_epochs", "1"),
        *("--data.n_candidates", "5", "--model.n_candidates", "5", "--model.n_steps", "1"),
        *("--model.n_static_prompts", "1", "--model.history_lengths", "[1]"),
    ]
    main(command("fit", *options))
    main(command("test", *options))
    record = json.loads((here / "results/ml-100k/results.json").read_text())
    assert record["replies"] == {"valid": 1}
    assert record["counters"]["failed"] == 0
    assert record["counters"]["reply_tokens"] > 0
