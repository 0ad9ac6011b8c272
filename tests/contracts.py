"""What every language model must do, stated once.

Subclass :class:`LanguageModelContract` with a fixture ``llm`` and, where the model gives no
probabilities, ``scores = False``.
"""

from __future__ import annotations

import math

import pytest

from rpp.llms.base import LanguageModel
from rpp.llms.cached import CachedLanguageModel
from rpp.types import InputError, LanguageModelError

PROMPTS = (
    "Rank these films.",
    "I have seen\n1. Red Harbour\n2. Silent River\nWhat comes next, and why do you think so?",
    "x",
    "Ünïcode – 七人の侍",
)
OPTIONS = (("A", "B", "C"), ("B", "A"), ("Red Harbour", "Red", "Blue Mirror", "x"), ("A",))
NO_SCORES = "this model gives no probabilities"


class LanguageModelContract:
    """Tests that hold for every language model."""

    scores = True

    def test_one_reply_per_prompt_in_order(self, llm: LanguageModel) -> None:
        replies = llm.generate(PROMPTS)
        assert len(replies) == len(PROMPTS)
        assert all(isinstance(reply, str) for reply in replies)
        assert len(set(replies)) > 1, "this contract needs a model that reads its prompt"
        assert replies == [llm.generate([prompt])[0] for prompt in PROMPTS]

    def test_replies_do_not_depend_on_order_or_company(self, llm: LanguageModel) -> None:
        replies = llm.generate(PROMPTS)
        assert llm.generate(PROMPTS[::-1]) == replies[::-1]
        assert llm.generate([PROMPTS[1], PROMPTS[1], PROMPTS[0]]) == [
            replies[1], replies[1], replies[0],
        ]  # fmt: skip

    def test_no_prompts_no_replies(self, llm: LanguageModel) -> None:
        assert llm.generate([]) == []

    def test_usage_grows(self, llm: LanguageModel) -> None:
        llm.generate(["something that was never asked before"])
        usage = llm.meter.tokens if isinstance(llm, CachedLanguageModel) else llm.usage
        assert usage.prompt_tokens > 0
        assert usage.reply_tokens > 0

    def test_a_model_without_scores_says_what_to_do(self, llm: LanguageModel) -> None:
        if self.scores:
            pytest.skip("this model gives probabilities")
        with pytest.raises(InputError, match=r"environment\.decoding: generate"):
            llm.score(PROMPTS, OPTIONS)

    def test_scores_have_one_number_per_continuation(self, llm: LanguageModel) -> None:
        if not self.scores:
            pytest.skip(NO_SCORES)
        rows = llm.score(PROMPTS, OPTIONS)
        assert [len(row) for row in rows] == [len(texts) for texts in OPTIONS]
        assert all(math.isfinite(score) and score <= 0 for row in rows for score in row)

    def test_scores_do_not_depend_on_order_or_company(self, llm: LanguageModel) -> None:
        if not self.scores:
            pytest.skip(NO_SCORES)
        prefixes = ["", "1. ", "Red", "a"]
        rows = llm.score(PROMPTS, OPTIONS, prefixes)
        turned = llm.score(PROMPTS[::-1], [row[::-1] for row in OPTIONS[::-1]], prefixes[::-1])
        for row, other in zip(rows, turned[::-1], strict=True):
            assert row == pytest.approx(other[::-1], abs=1e-4)
        for k, row in enumerate(rows):
            (alone,) = llm.score([PROMPTS[k]], [OPTIONS[k]], [prefixes[k]])
            assert row == pytest.approx(alone, abs=1e-4)
            for text, score in zip(OPTIONS[k], row, strict=True):
                assert llm.score([PROMPTS[k]], [[text]], [prefixes[k]])[0] == pytest.approx(
                    [score], abs=1e-4
                )

    def test_the_response_prefix_counts(self, llm: LanguageModel) -> None:
        if not self.scores:
            pytest.skip(NO_SCORES)
        assert llm.score(["x"], [["A"]], [""]) != llm.score(["x"], [["A"]], ["B\n"])
        assert llm.score(["x"], [["A"]]) == llm.score(["x"], [["A"]], [""])

    def test_a_permutation_writes_every_option_once(self, llm: LanguageModel) -> None:
        if not self.scores:
            pytest.skip(NO_SCORES)
        replies = llm.generate_permutation(PROMPTS, OPTIONS)
        for reply, options in zip(replies, OPTIONS, strict=True):
            assert not isinstance(reply, LanguageModelError)
            assert sorted(reply.split("\n")) == sorted(options)
        assert llm.generate_permutation(PROMPTS[::-1], OPTIONS[::-1]) == replies[::-1]
        assert [
            llm.generate_permutation([p], [o])[0] for p, o in zip(PROMPTS, OPTIONS, strict=True)
        ] == replies

    def test_fingerprint_is_stable(self, llm: LanguageModel) -> None:
        before = llm.fingerprint
        llm.generate(PROMPTS[:1])
        assert llm.fingerprint == before != ""

    def test_tokens_are_counted(self, llm: LanguageModel) -> None:
        assert 0 < llm.count_tokens("a") < llm.count_tokens("a longer text, ten times over" * 10)
        assert llm.context_length is None or llm.context_length > 0
