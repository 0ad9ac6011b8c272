"""The references of the comparison: manual prompt, best static prompt, random policy."""

from __future__ import annotations

from dataclasses import replace

import pytest
from comparison_setup import GOOD, PATTERNS, knows, scored, task
from comparison_setup import users as users
from evidence_setup import Fixed

from rpp.comparison.references import Enumeration, Manual, RandomPolicy
from rpp.llms.controls import answers_at_random, shown_candidates
from rpp.prompts.patterns import load_patterns
from rpp.types import InputError, LanguageModelError


def test_the_manual_prompt_is_that_of_the_file(users):
    asked = []
    mine = task(users, lambda prompt: asked.append(prompt) or "")
    Manual().learn(mine)(users.episodes("validation"))
    assert len(asked) == 20
    for prompt, episode in zip(sorted(asked), users.episodes("validation"), strict=True):
        assert PATTERNS.role[1] in prompt
        assert PATTERNS.reasoning[4].replace("{n_candidates}", "10") in prompt
        assert prompt.count("\n") > len(episode.candidates) + 10  # 10 past items and the list


def test_enumeration_takes_the_prompt_that_is_best_on_validation_users(users):
    mine = task(users, knows(users, when=GOOD))
    drawn = Enumeration(64)
    test = users.episodes("test")
    assert scored(drawn.learn(mine)(test), test) == 1
    assert drawn.max_calls(mine, 60) == 64 * 20 + 60
    assert mine.ranker.counters.calls <= 64 * 20 + 60
    assert scored(Manual().learn(mine)(test), test) < 0.7


def test_a_prompt_that_is_answered_for_hardly_anybody_is_not_chosen(users):
    """Left out, failures would let it win by the one user for whom there was a right answer."""
    lucky = {item.title for item in users.episodes("validation")[0].candidates}
    right = knows(users, when=GOOD)

    def reply(prompt):
        if GOOD in prompt and set(shown_candidates(prompt)) != lucky:
            return LanguageModelError("refused")
        return right(prompt)

    test = users.episodes("test")
    rankings = Enumeration(64).learn(task(users, reply))(test)
    assert not any(ranking.failed for ranking in rankings)


def test_the_random_policy_draws_for_each_user_alone(users):
    test = users.episodes("test")
    mine = task(users, answers_at_random)
    forwards = RandomPolicy().learn(mine)(test)
    backwards = RandomPolicy().learn(mine)(test[::-1])
    assert [each.order for each in backwards[::-1]] == [each.order for each in forwards]


def test_a_manual_prompt_with_an_option_of_evidence(users):
    """Each is another prompt; the file's own has none."""
    asked = []
    patterns = load_patterns("conf/patterns/movies_evidence.yaml")
    order = tuple(range(10))
    told = Fixed(**{"EASE": order, "Item-kNN": order, "Pop": order})
    mine = replace(
        task(users, lambda prompt: asked.append(prompt) or ""), patterns=patterns, evidence=told
    )
    validation = users.episodes("validation")[:1]
    for method in (Manual(), Manual(2, "EASE"), Manual(4, "both")):
        method.learn(mine)(validation)
    assert [text.count("movies: ") + text.count("watched: ") for text in asked] == [0, 1, 2]
    assert Manual(2, "EASE").name == "EASE"
    with pytest.raises(InputError, match="manual evidence is 9"):
        Manual(9, "none").learn(mine)
    with pytest.raises(InputError, match="option 2 of evidence is asked for"):
        Manual(2, "none").learn(task(users))
