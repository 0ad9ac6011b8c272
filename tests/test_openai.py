"""The HTTP backend against a small server on loopback that can be made to fail."""

from __future__ import annotations

import itertools
import re
import threading
import tracemalloc

import pytest
from chat_server import FAULTS
from contracts import LanguageModelContract
from helpers import KEY

from rpp.llms.cache import ReplyCache
from rpp.llms.cached import CachedLanguageModel
from rpp.llms.openai import OpenAILanguageModel
from rpp.types import LanguageModelError, LanguageModelStop

pytestmark = pytest.mark.usefixtures("no_key")


class TestOpenAI(LanguageModelContract):
    scores = False

    @pytest.fixture
    def llm(self, make_openai):
        return make_openai()


def test_replies_come_in_order_and_no_more_requests_at_once_than_asked(server, make_openai):
    llm = make_openai(concurrency=3)
    words = [f"w{k}" for k in range(20)]
    assert llm.generate([f"say {word}" for word in words]) == [f"1. {word}" for word in words]
    assert 1 < server.most_at_once <= 3
    assert llm.usage.prompt_tokens == 140
    assert llm.usage.reply_tokens == 60
    assert llm.cost(llm.usage) == 0
    assert server.seen[0]["temperature"] == 0.2
    assert server.seen[0]["max_tokens"] == 400


def test_a_straggler_keeps_nobody_waiting(server, make_openai):
    """Chunks of 32 once waited for their slowest reply, so that 31 places stood empty."""
    server.faults, server.n_expected = ["last"], 200
    llm = CachedLanguageModel(make_openai(concurrency=8, timeout=60.0), ReplyCache(None))
    replies = llm.generate([f"say w{k:03}" for k in range(200)])
    assert replies == [f"1. w{k:03}" for k in range(200)]
    assert server.was_last  # all others were asked before the first had its answer
    assert server.most_at_once == 8


def test_every_answer_is_kept_at_once_even_if_the_run_is_interrupted(
    server, make_openai, monkeypatch
):
    server.seconds = 0.1
    llm = CachedLanguageModel(make_openai(concurrency=4), ReplyCache(None))
    calls = itertools.count()

    class Interrupted:
        """The progress bar stands in the loop in which Ctrl-C strikes."""

        def __init__(self, **options): ...
        def __enter__(self):
            return self

        def __exit__(self, *error): ...
        def update(self, n):
            if next(calls) == 5:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rpp.llms.cached.tqdm", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate([f"say w{k:03}" for k in range(200)])
    assert 6 <= len(server.seen) <= 6 + 2 * 4  # nothing else was sent
    assert len(llm.cache) == len(server.seen)  # and what was under way is kept
    assert len(llm.generate([f"say w{k:03}" for k in range(20)])) == 20
    assert not server.asked_again.total()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_passing_fault_is_repeated(server, make_openai, fault):
    server.faults = [fault]
    assert make_openai(max_retries=2, timeout=0.4).generate(["say this"]) == ["1. this"]
    assert len(server.seen) == 2


def test_as_many_seconds_are_waited_as_the_server_says(server, make_openai):
    server.faults, server.retry_after = ["429"], "1.3"
    assert make_openai().generate(["say this"]) == ["1. this"]
    first, second = server.times
    assert 1.3 <= second - first < 2.5


@pytest.mark.parametrize("fault", ["500", "cut", "slow", "malformed", "empty", "400", "429"])
def test_one_lasting_fault_costs_no_other_prompt(server, make_openai, fault):
    server.faults = [fault]
    llm = make_openai(max_retries=0, concurrency=1, timeout=0.4)
    first, second = llm.generate(["say a", "say b"])
    assert isinstance(first, LanguageModelError)
    assert not isinstance(first, LanguageModelStop)
    assert second == "1. b"


def test_what_the_server_says_is_passed_on(server, make_openai):
    server.faults, server.error = ["400"], {"message": "your prompt has 9000 tokens"}
    (refused,) = make_openai().generate(["say a"])
    assert str(refused) == "the server answered with status 400: your prompt has 9000 tokens"


def test_many_faults_lose_nothing_and_ask_nothing_twice(server, make_openai, hasty):
    """A tenth of the requests meets each of six faults."""
    server.shares, server.seconds = dict.fromkeys(FAULTS, 0.1), 0.005
    server.slow_seconds, server.retry_after = 0.6, "0.02"
    llm = CachedLanguageModel(
        make_openai(concurrency=16, timeout=0.3, max_retries=12), ReplyCache(None)
    )
    prompts = [f"say w{k:03}" for k in range(300)]
    assert llm.generate(prompts) == [f"1. w{k:03}" for k in range(300)]
    assert server.answered == dict.fromkeys(prompts, 1)
    assert not server.asked_again.total()
    assert len(server.seen) > 500
    assert len(llm.cache) == 300


def test_memory_does_not_grow_with_the_requests(server, make_openai, hasty):
    server.shares, server.seconds = {"500": 0.1, "empty": 0.1}, 0.0
    llm = make_openai(concurrency=8)
    server.seen = type("Nothing", (), {"append": lambda self, body: None})()

    def ask(n):
        for start in range(0, n, 50):
            llm.generate([f"say w{k}" for k in range(start, start + 50)])
        server.answered.clear()
        server.times.clear()

    ask(100)
    tracemalloc.start()
    try:
        ask(100)
        before = tracemalloc.get_traced_memory()[0]
        ask(400)
        assert tracemalloc.get_traced_memory()[0] - before < 200_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        ("401", {}, "refused the key in OPENAI_API_KEY"),
        ("403", {}, "refused the key in OPENAI_API_KEY"),
        ("404", {}, "knows no model 'm'"),
        ("429", {"code": "insufficient_quota"}, "quota is used up"),
    ],
)
def test_what_no_prompt_can_mend_ends_the_run(
    server, make_openai, monkeypatch, status, error, message
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.shares, server.error = {status: 1.0}, error
    llm = CachedLanguageModel(make_openai(max_retries=0, concurrency=2), ReplyCache(None))
    with pytest.raises(LanguageModelStop, match=message) as stop:
        llm.generate([f"say w{k}" for k in range(200)])
    assert len(server.seen) < 20
    assert server.keys == {f"Bearer {KEY}"}
    assert "planted" not in str(stop.value)


def test_a_server_that_is_gone_ends_the_run(server, make_openai):
    llm = CachedLanguageModel(make_openai(max_retries=0, concurrency=2), ReplyCache(None))
    assert llm.generate(["say a"]) == ["1. a"]
    server.shares = {"cut": 1.0}
    with pytest.raises(LanguageModelStop, match=r"cannot be reached \(.*\), \d prompts in a row"):
        llm.generate([f"say w{k}" for k in range(200)])
    assert len(server.seen) < 20


def test_no_server_at_all():
    llm = OpenAILanguageModel("m", "http://127.0.0.1:9/v1", max_retries=0)
    (reply,) = llm.generate(["say a"])
    assert re.fullmatch(r"the server cannot be reached \(.*refused.*\)", str(reply))
    llm.close()


def test_a_model_that_thinks_until_its_tokens_are_spent_is_asked_once(server, make_openai):
    server.shares, server.finish_reason = {"empty": 1.0}, "length"
    (reply,) = make_openai(max_new_tokens=9).generate(["say a"])
    assert "spent its 9 tokens before it wrote a word" in str(reply)
    assert len(server.seen) == 1


def test_fields_that_a_model_refuses_can_be_left_out(server, make_openai):
    server.first_tokens = [("A", -0.1), ("B", -3.0)]
    llm = make_openai(temperature=None, top_p=None)
    llm.generate(["say a"])
    llm.score(["say a"], [["A", "B"]])
    assert all("temperature" not in body and "top_p" not in body for body in server.seen)
    assert make_openai(temperature=None).fingerprint != make_openai().fingerprint
    make_openai().score(["say b"], [["A", "B"]])
    assert server.seen[-1]["temperature"] == 0


def test_fingerprint_tells_settings_apart(make_openai):
    assert make_openai().fingerprint == make_openai().fingerprint
    others = [{"temperature": 0.0}, {"extra": {"reasoning_effort": "low"}}, {"seed": 1}]
    assert len({make_openai(**other).fingerprint for other in [{}, *others]}) == 4


def test_extra_fields_are_sent(server, make_openai):
    make_openai(extra={"cache_prompt": False}).generate(["say a"])
    assert server.seen[0]["cache_prompt"] is False


def test_no_thread_is_left(make_openai):
    before = threading.active_count()
    make_openai(concurrency=8).generate([f"say w{k}" for k in range(30)])
    ours = [thread.name for thread in threading.enumerate() if re.search("Pool", thread.name)]
    assert ours == []
    assert threading.active_count() <= before + 8  # the server's own, one a connection
