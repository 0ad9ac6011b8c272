"""The references of the comparison: manual prompt, best static prompt, random policy."""

from __future__ import annotations

from comparison_setup import GOOD, PATTERNS, knows, scored, task
from comparison_setup import users as users

from rpp.comparison.references import Enumeration, Manual, RandomPolicy
from rpp.llms.controls import answers_at_random, shown_candidates
from rpp.types import LanguageModelError


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
