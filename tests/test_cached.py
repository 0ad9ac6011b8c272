"""A language model that is asked only what it has not answered before."""

from __future__ import annotations

import json
import math
import threading

import pytest
from contracts import LanguageModelContract
from helpers import Recorder

from rpp.llms.base import LanguageModel, ScriptedLanguageModel, Usage
from rpp.llms.cache import ReplyCache
from rpp.llms.cached import CHUNK, CachedLanguageModel, Meter
from rpp.types import InputError, LanguageModelError, LanguageModelStop


class TestScripted(LanguageModelContract):
    @pytest.fixture
    def llm(self):
        return ScriptedLanguageModel(
            lambda prompt: prompt[::-1],
            scorer=lambda prompt, text: -float(sum((prompt + text).encode()) % 101),
        )


class TestScriptedWithoutScores(LanguageModelContract):
    scores = False

    @pytest.fixture
    def llm(self):
        return ScriptedLanguageModel(lambda prompt: prompt[::-1])


class TestCached(LanguageModelContract):
    @pytest.fixture
    def llm(self, tmp_path):
        return CachedLanguageModel(Recorder(), ReplyCache(tmp_path))


def test_fingerprint_of_a_script_is_its_name():
    assert (
        ScriptedLanguageModel("x", name="a").fingerprint != ScriptedLanguageModel("x").fingerprint
    )


def test_second_call_costs_nothing(tmp_path):
    first = CachedLanguageModel(Recorder(), ReplyCache(tmp_path))
    replies = first.generate(["a", "b"])
    assert (first.meter.n_calls, first.meter.n_hits) == (2, 0)
    again = CachedLanguageModel(Recorder(), ReplyCache(tmp_path))  # as in another process
    assert again.generate(["b", "a"]) == replies[::-1]
    assert again.model.batches == []
    assert (again.meter.n_calls, again.meter.n_hits) == (0, 2)
    assert again.meter.tokens.prompt_tokens == again.meter.tokens.reply_tokens == 0


def test_equal_prompts_are_sent_once():
    llm = CachedLanguageModel(Recorder(), ReplyCache(None))
    assert llm.generate(["a", "b", "a", "a"]) == [f"reply to {p}" for p in "abaa"]
    assert llm.model.asked == {"a": 1, "b": 1}
    assert (llm.meter.n_calls, llm.meter.n_hits) == (2, 2)


def test_failures_are_not_kept():
    answers = iter([LanguageModelError("lost"), "back"])
    llm = CachedLanguageModel(Recorder(lambda _: next(answers)), ReplyCache(None))
    (failure,) = llm.generate(["a"])
    assert isinstance(failure, LanguageModelError)
    assert llm.generate(["a"]) == ["back"]
    assert llm.generate(["a"]) == ["back"]
    assert (llm.meter.n_calls, llm.meter.n_hits) == (2, 1)


def test_an_error_costs_its_own_chunk_only():
    class Flaky(Recorder):
        def generate(self, prompts):
            if len(self.batches) == 1:
                self.batches.append(list(prompts))
                raise LanguageModelError("out of memory")
            return super().generate(prompts)

    llm = CachedLanguageModel(Flaky(), ReplyCache(None))
    prompts = [f"{k:03}" for k in range(3 * CHUNK)]
    replies = llm.generate(prompts)
    failed = [k for k, reply in enumerate(replies) if isinstance(reply, LanguageModelError)]
    assert failed == list(range(CHUNK, 2 * CHUNK))
    assert len(llm.cache) == 2 * CHUNK
    assert llm.generate(prompts) == [f"reply to {p}" for p in prompts]
    assert max(llm.model.asked.values()) == 1


def test_a_model_that_waits_for_somebody_else_is_asked_by_threads():
    """All its author writes beside ``generate`` is how many may be under way."""
    together = threading.Barrier(3, timeout=10)

    class Waiting(Recorder):
        concurrency = 3

        def generate(self, prompts):
            together.wait()  # passes only when three threads are here
            return super().generate(prompts)

    llm = CachedLanguageModel(Waiting(), ReplyCache(None))
    prompts = [f"{k}" for k in range(9)]
    assert llm.generate(prompts) == [f"reply to {p}" for p in prompts]
    assert sorted(llm.model.batches) == [[p] for p in prompts]


def test_an_error_in_a_model_of_the_users_own_names_class_contract_and_line():
    class Own(LanguageModel):
        fingerprint = "own"

        def __init__(self):
            """Without that of the base class, which once ended in a traceback of ours."""

        def generate(self, prompts):
            raise KeyError("choices")

    llm = CachedLanguageModel(Own(), ReplyCache(None))
    told = r"Own\.generate raised KeyError: 'choices' \(.*test_cached\.py, line \d+\): mend it, or"
    with pytest.raises(InputError, match=told):
        llm.generate(["a"])
    assert llm.meter.tokens == Usage()


def test_an_error_in_a_model_of_ours_is_not_swallowed():
    def broken(prompt):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        CachedLanguageModel(ScriptedLanguageModel(broken), ReplyCache(None)).generate(["a"])


def test_prompts_that_begin_alike_are_sent_together():
    llm = CachedLanguageModel(Recorder(), ReplyCache(None))
    llm.generate(["user b: 1", "user a: 1", "user b: 2", "user a: 2"])
    assert llm.model.batches == [["user a: 1", "user a: 2", "user b: 1", "user b: 2"]]


def test_fingerprints_and_kinds_are_kept_apart(tmp_path):
    cache = ReplyCache(tmp_path)
    one = CachedLanguageModel(Recorder(lambda _: "one", name="one"), cache)
    two = CachedLanguageModel(Recorder(lambda _: "two", name="two"), cache)
    assert one.generate(["a"]) == ["one"]
    assert two.generate(["a"]) == ["two"]
    assert one.generate_permutation(["a"], [["x", "y"]]) != ["one"]
    assert one.score(["a"], [["x", "y"]])[0] != "one"
    assert len(cache) == 4
    assert one.generate_permutation(["a"], [["x"]]) == ["x"]
    assert one.score(["a"], [["x"]], ["prefix"]) != one.score(["a"], [["x"]])


def test_scores_do_not_depend_on_the_order_they_were_asked_in():
    llm = CachedLanguageModel(Recorder(), ReplyCache(None))
    (row,) = llm.score(["p"], [["a", "bbb", "cc"]])
    assert row == pytest.approx([-1.01, -1.03, -1.02])
    (turned,) = llm.score(["p"], [["cc", "a", "bbb"]])
    assert turned == [row[2], row[0], row[1]]
    (twice,) = llm.score(["p"], [["a", "a", "cc", "bbb"]])
    assert twice == [row[0], row[0], row[2], row[1]]
    assert llm.meter.n_calls == 1


def test_replies_come_back_as_they_were(tmp_path):
    reply = 'quote " backslash \\ line\nbreak  七人の侍 \U0001f3ac end'
    CachedLanguageModel(Recorder(lambda _: reply), ReplyCache(tmp_path)).generate(["a"])
    again = CachedLanguageModel(Recorder(), ReplyCache(tmp_path))
    assert again.generate(["a"]) == [reply]


def test_two_models_share_a_limit_and_a_count():
    first = CachedLanguageModel(Recorder(), ReplyCache(None), Meter(3))
    second = first.beside(Recorder(name="another"))
    first.generate(["a", "b"])
    second.generate(["a"])
    assert (first.meter.n_calls, first.meter.tokens.prompt_tokens) == (
        3,
        first.model.usage.prompt_tokens + second.model.usage.prompt_tokens,
    )
    for llm in (first, second):
        with pytest.raises(LanguageModelStop):
            llm.generate(["c"])


def test_calls_are_bounded_and_what_was_paid_is_kept():
    cache = ReplyCache(None)
    llm = CachedLanguageModel(Recorder(), cache, Meter(3))
    llm.generate(["a", "b"])
    with pytest.raises(LanguageModelStop, match=r"environment\.max_calls: 3 calls .* are made"):
        llm.generate(["a", "b", "c", "d"])
    assert llm.generate(["a", "b", "c"]) == ["reply to a", "reply to b", "reply to c"]
    assert (llm.meter.n_calls, len(cache)) == (3, 3)
    with pytest.raises(LanguageModelStop):
        llm.generate(["d"])
    assert llm.meter.n_calls == 3


@pytest.mark.parametrize(
    ("replies", "said"),
    [
        (lambda prompts: ["r" + p if p != "b" else None for p in prompts], "None"),
        (lambda prompts: ["r" + p if p != "b" else 3 for p in prompts], "3"),
        (lambda prompts: ["r" + p if p != "b" else [p] for p in prompts], r"\['b'\]"),
        (lambda prompts: None, "None"),
        (lambda prompts: "rab"[: len(prompts)], "'ra'"),
        (lambda prompts: ["ra"], "'1 answers to 2 prompts'"),
    ],
)
def test_what_is_no_reply_is_refused_and_not_kept(tmp_path, replies, said):
    """``None`` was once kept, so that the run crashed even after the class had been mended."""

    class Broken(Recorder):
        def generate(self, prompts):
            return replies(prompts)

    broken = CachedLanguageModel(Broken(), ReplyCache(tmp_path))
    with pytest.raises(InputError, match=rf"Broken\.generate must return one text .*{said}"):
        broken.generate(["a", "b"])
    mended = CachedLanguageModel(Recorder(lambda p: "r" + p), ReplyCache(tmp_path))
    assert mended.generate(["a", "b"]) == ["ra", "rb"]


@pytest.mark.parametrize(
    "row", [None, [1.0], [1.0, 2.0, 3.0], [0.0, None], [0.0, math.nan], "xy", [True, False]]
)
def test_what_are_no_scores_is_refused_and_not_kept(row):
    class Broken(Recorder):
        def score(self, prompts, continuations, response_prefixes=None):
            return [row] * len(prompts)

    llm = CachedLanguageModel(Broken(), ReplyCache(None))
    with pytest.raises(InputError, match=r"Broken\.score must return one list of numbers"):
        llm.score(["a"], [["x", "y"]])
    assert len(llm.cache) == 0


def test_what_is_no_permutation_is_refused_and_not_kept():
    class Broken(Recorder):
        def generate_permutation(self, prompts, options):
            return ["x\nx"] * len(prompts)

    llm = CachedLanguageModel(Broken(), ReplyCache(None))
    with pytest.raises(InputError, match=r"Broken\.generate_permutation must return one text"):
        llm.generate_permutation(["a"], [["x", "y"]])
    assert len(llm.cache) == 0


def test_what_an_earlier_version_has_kept_and_is_no_answer_is_asked_again(tmp_path):
    cache = ReplyCache(tmp_path)
    llm = CachedLanguageModel(Recorder(), cache)
    llm.generate(["a"])
    llm.score(["a"], [["x", "y"]])
    for value in (None, [1.0]):
        cache._connection.execute("UPDATE replies SET value = ?", (json.dumps(value),))
        assert llm.generate(["a"]) == ["reply to a"]
        assert llm.score(["a"], [["x", "y"]]) == [[-1.01, -1.01]]
