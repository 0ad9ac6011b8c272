"""The HTTP backend against a small server on loopback that can be made to fail."""

from __future__ import annotations

import pytest

from rpp.llms.base import LanguageModelError
from rpp.llms.openai import OpenAILanguageModel
from rpp.types import InputError


@pytest.fixture
def make(server):
    made = []

    def make(**options):
        url = f"http://127.0.0.1:{server.server_port}/v1"
        made.append(OpenAILanguageModel("m", url, **{"timeout": 5.0} | options))
        return made[-1]

    yield make
    for llm in made:
        llm.close()


def test_replies_come_in_order_and_no_more_requests_at_once_than_asked(server, make):
    llm = make(concurrency=3)
    words = [f"w{k}" for k in range(20)]
    assert llm.generate([f"say {word}" for word in words]) == [f"1. {word}" for word in words]
    assert 1 < server.most_at_once <= 3
    assert llm.usage.prompt_tokens == 140
    assert llm.usage.reply_tokens == 60
    assert server.seen[0]["temperature"] == 0.2


@pytest.mark.parametrize("fault", ["429", "500", "503", "cut"])
def test_a_passing_fault_is_repeated(server, make, fault):
    server.faults = [fault]
    assert make(max_retries=2).generate(["say this"]) == ["1. this"]
    assert len(server.seen) == 2


def test_a_slow_answer_is_given_up_and_asked_again(server, make):
    server.faults = ["slow"]
    assert make(timeout=0.4, max_retries=1).generate(["say this"]) == ["1. this"]


@pytest.mark.parametrize("fault", ["500", "cut", "malformed", "empty", "400"])
def test_one_lasting_fault_costs_no_other_prompt(server, make, fault):
    server.faults = [fault]
    llm = make(max_retries=0, concurrency=1)
    first, second = llm.generate(["say a", "say b"])
    assert isinstance(first, LanguageModelError)
    assert second == "1. b"


def test_budget(make):
    llm = make(concurrency=1, max_total_tokens=25)
    replies = llm.generate(["say a"] * 5)
    assert [isinstance(reply, str) for reply in replies] == [True, True, True, False, False]
    assert "budget of 25 tokens" in str(replies[-1])


def test_the_key_is_sent_but_never_shown(server, make, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server.faults = ["401"]
    llm = make(max_retries=0)
    (refused,) = llm.generate(["say a"])
    assert "refused the key in OPENAI_API_KEY" in str(refused)
    assert "secret" not in str(refused)
    assert "secret" not in llm.fingerprint


def test_a_missing_key_is_named(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match="OPENAI_API_KEY is not set"):
        OpenAILanguageModel("gpt-3.5-turbo").generate(["say a"])


def test_fingerprint_tells_settings_apart(make):
    assert make().fingerprint == make().fingerprint
    assert make().fingerprint != make(temperature=0.0).fingerprint
