"""The client of a chat server: budget, key, address."""

from __future__ import annotations

import pytest
from helpers import KEY, prompts_for

from rpp.llms.base import Usage
from rpp.llms.budget import Budget
from rpp.llms.cache import ReplyCache
from rpp.llms.cached import CachedLanguageModel
from rpp.llms.chat import without_key
from rpp.llms.openai import OpenAILanguageModel
from rpp.ranker import Ranker
from rpp.types import InputError, LanguageModelStop

pytestmark = pytest.mark.usefixtures("no_key")


def test_a_token_budget_ends_the_run_and_keeps_what_is_answered(server, make_openai):
    llm = CachedLanguageModel(make_openai(concurrency=2, max_total_tokens=25), ReplyCache(None))
    prompts = [f"say w{k}" for k in range(50)]
    with pytest.raises(LanguageModelStop, match=r"budget of 25 tokens .* raise max_total_tokens"):
        llm.generate(prompts)
    assert 3 <= len(server.seen) <= 4  # of 10 tokens each; one may have been under way
    assert len(llm.cache) == len(server.seen)


def test_a_budget_in_the_place_of_replies(make_openai):
    llm = make_openai(concurrency=1, max_total_tokens=25)
    replies = llm.generate(["say a"] * 5)
    assert [isinstance(reply, str) for reply in replies] == [True, True, True, False, False]
    assert isinstance(replies[-1], LanguageModelStop)


def test_cost_by_hand():
    budget = Budget(max_cost=1.0, prompt_price=0.5, reply_price=1.5)
    assert budget.cost(Usage(1_000_000, 200_000)) == pytest.approx(0.5 + 0.3)
    budget.check(Usage(1_000_000, 333_333))
    with pytest.raises(LanguageModelStop, match=r"budget of 1 is spent .* max_cost"):
        budget.check(Usage(1_000_000, 333_334))


def test_a_money_budget_ends_the_run(server, make_openai):
    # a reply costs (7 * 1 + 3 * 2) / 1e6 = 13e-6: after three 39e-6 are spent, of 30e-6
    llm = make_openai(concurrency=1, max_cost=30e-6, prompt_price=1.0, reply_price=2.0)
    replies = llm.generate([f"say w{k}" for k in range(5)])
    assert [isinstance(reply, str) for reply in replies] == [True, True, True, False, False]
    assert len(server.seen) == 3


def test_money_spent_is_counted_once_and_a_repetition_is_free(make_openai, tiny_episodes):
    ranker = Ranker(make_openai(prompt_price=1.0, reply_price=2.0), "generate")
    for _ in range(2):
        ranker.rank(prompts_for(tiny_episodes[:2], "titles"), tiny_episodes[:2])
        assert ranker.counters.cost == pytest.approx(26e-6)  # two calls of 7 and 3 tokens


def test_a_budget_holds_where_the_server_does_not_count(server, make_openai):
    server.counts_tokens = False
    llm = make_openai(concurrency=1, max_total_tokens=100)
    replies = llm.generate([f"say {'word ' * 20}w{k}" for k in range(10)])
    assert 2 <= sum(isinstance(reply, str) for reply in replies) <= 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_cost": 1.0}, "prompt_price"),
        ({"concurrency": 0}, "concurrency is 0"),
    ],
)
def test_senseless_settings_are_refused(make_openai, options, message):
    with pytest.raises(InputError, match=message):
        make_openai(**options)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        (None, "max_completion_tokens"),
        ("https://api.openai.com/v1", "max_completion_tokens"),
        ("https://mine.openai.azure.com/openai/v1", "max_completion_tokens"),
        ("http://localhost:8000/v1", "max_tokens"),
    ],
)
def test_openai_has_another_name_for_the_longest_reply(monkeypatch, url, name):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    llm = OpenAILanguageModel("m", url)
    sent = {}

    class Completions:
        @staticmethod
        def create(**fields):
            sent.update(fields)
            return '{"choices": [{"message": {"content": "1. a"}}]}'

    class Client:
        chat = type("Chat", (), {"completions": Completions})
        close = staticmethod(lambda: None)

    llm.chat._client = Client
    llm.generate(["say a"])
    assert sent["extra_body"] == {name: 400}


def test_learner_processes_have_equal_parts_of_a_budget(make_openai):
    llm = make_openai(max_total_tokens=30, max_cost=1.0, prompt_price=1e5)
    llm.share(3)
    assert llm.chat.budget == Budget(10, 1 / 3, 1e5, 0.0)
    replies = llm.generate(["say a", "say b"])  # 10 tokens each
    assert replies.count("1. a") + replies.count("1. b") >= 1
    with pytest.raises(LanguageModelStop, match="budget of 10 tokens"):
        CachedLanguageModel(llm, ReplyCache(None)).generate(["say c"])


def test_a_missing_key_is_named():
    with pytest.raises(InputError, match="OPENAI_API_KEY is not set"):
        OpenAILanguageModel("gpt-3.5-turbo")


def test_the_address_may_come_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    llm = OpenAILanguageModel("m")
    assert llm.generate(["say a"]) == ["1. a"]
    assert server.url in llm.fingerprint
    llm.close()


@pytest.mark.parametrize(
    "url",
    [
        f"http://me:{KEY}@127.0.0.1:1/v1",
        f"http://127.0.0.1:1/v1?api_key={KEY}",
        f"http://127.0.0.1:1/v1#{KEY}",
        f"http://127.0.0.1:1/{KEY}/v1",
        f"ftp://{KEY}/v1",
        f"http://[{KEY}/v1",
        KEY,
    ],
)
@pytest.mark.parametrize("from_environment", [False, True])
def test_no_key_in_the_address(monkeypatch, url, from_environment):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    if from_environment:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(InputError, match=r"base_url must be .* OPENAI_API_KEY") as refused:
        OpenAILanguageModel("m", None if from_environment else url)
    assert "planted" not in str(refused.value)


@pytest.mark.parametrize("name", [KEY, "gsk_4f9Qz81Xw", ""])
def test_a_key_in_the_place_of_its_variable(name):
    with pytest.raises(InputError, match="key_variable must be the name") as refused:
        OpenAILanguageModel("m", "http://127.0.0.1:1/v1", key_variable=name)
    assert not name or name not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"key {KEY} is wrong", "key *** is wrong"),
        (f"header 'Bearer {KEY}'", "header 'Bearer ***"),
        (f"key {KEY[:9]}... is wrong", "key *** is wrong"),
        (f"key ***{KEY[-7:].upper()} is wrong", "key *** is wrong"),
        ("nothing of it", "nothing of it"),
    ],
)
def test_no_part_of_the_key_is_passed_on(text, left):
    assert without_key(text, KEY) == left
    assert without_key(text, None) == text
