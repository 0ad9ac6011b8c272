"""GRIPS with a model that fails, a budget that is spent, settings that make no sense."""

from __future__ import annotations

from dataclasses import replace

import pytest
from grips_setup import MANUAL, PLACEHOLDER, SENTENCES, asks_for_words, ndcg_of, planted, task
from grips_setup import users as users

from rpp.comparison.base import Task
from rpp.comparison.edits import split
from rpp.comparison.grips import GRIPS, OracleGRIPS, PersonalGRIPS
from rpp.llms.base import ScriptedLanguageModel
from rpp.llms.controls import answers_at_random, shown_candidates
from rpp.prompts.refine import INSTRUCTION
from rpp.prompts.static import only_prompt
from rpp.ranker import Ranker
from rpp.types import InputError, LanguageModelError, LanguageModelStop


def test_failed_rankings_neither_crash_nor_win(users):
    """A model that fails on every prompt without the manual reasoning: nothing beats that."""
    whole = MANUAL.reasoning[0].replace(PLACEHOLDER, "10")
    good = planted(users, lambda user, prompt: "end up loving" not in prompt)

    def reply(prompt):
        return good(prompt) if whole in prompt else LanguageModelError("refused")

    def only_manual(prompt):
        both = whole in prompt and MANUAL.role[0] in prompt
        return answers_at_random(prompt) if both else LanguageModelError("refused")

    test = users.episodes("test")
    for method in (GRIPS, PersonalGRIPS, OracleGRIPS):
        # deleting a phrase of the role is better and answered; all other edits fail
        rankings = method(n_edits=40).learn(task(reply, users))(test)
        assert not any(r.failed for r in rankings)
        assert ndcg_of(rankings, test).mean() > 0.95
    for method in (PersonalGRIPS, OracleGRIPS):
        # one search on its own in which nothing but the manual prompt is answered
        (alone,) = method(n_edits=2).learn(task(only_manual, users))(test[:1])
        assert not alone.failed


@pytest.mark.parametrize("method", [GRIPS, PersonalGRIPS, OracleGRIPS])
def test_a_model_that_is_gone_is_no_search_without_success(users, method):
    """The manual prompt's replies are in the cache, so its row would have looked valid."""
    whole = MANUAL.reasoning[0].replace(PLACEHOLDER, "10")

    def only_manual(prompt):
        both = whole in prompt and MANUAL.role[0] in prompt
        return answers_at_random(prompt) if both else LanguageModelError("connection lost")

    with pytest.raises(LanguageModelError, match="connection lost"):
        method(n_edits=2, n_paraphrases=0).learn(task(only_manual, users))(users.episodes("test"))


def test_a_lucky_answer_among_failures_does_not_win(users):
    """Edited prompts are answered for one validation user alone, and perfectly."""
    whole = MANUAL.reasoning[0].replace(PLACEHOLDER, "10")
    lucky = planted(users, lambda user, prompt: True)
    first = tuple(shown_candidates(ask_once(users, 0)))

    def reply(prompt):
        if whole in prompt and MANUAL.role[0] in prompt:
            return answers_at_random(prompt)
        if tuple(shown_candidates(prompt)) == first:
            return lucky(prompt)
        return LanguageModelError("refused")

    test = users.episodes("test")
    rankings = GRIPS(n_paraphrases=0).learn(task(reply, users))(test)
    assert not any(r.failed for r in rankings)


def ask_once(users, user):
    """The manual prompt of a validation user."""
    prompts = []
    given = task(lambda p: prompts.append(p) or "", users)
    given.manual.step_static(users.episodes("validation")[user : user + 1], [only_prompt(MANUAL)])
    return prompts[0]


def test_a_model_that_rewords_nothing_costs_other_edits_only(users):
    answers = planted(users, lambda user, prompt: "one step at a time" not in prompt)

    def reply(prompt):
        if asks_for_words(prompt):
            return LanguageModelError("cannot generate")
        return answers(prompt)

    test = users.episodes("test")[:5]
    rankings = GRIPS(n_edits=40).learn(task(reply, users))(test)
    assert (ndcg_of(rankings, test) == 1).all()


def test_a_spent_budget_ends_the_search(users):
    llm = ScriptedLanguageModel(reply=answers_at_random)
    ranker = Ranker(llm, max_calls=50)
    with pytest.raises(LanguageModelStop, match="50 calls"):
        GRIPS(n_paraphrases=0).learn(Task(users, SENTENCES, ranker, n_steps=3))


def test_what_is_asked_for_rewording_is_the_phrase_alone(users):
    asked = []
    given = task(lambda p: asked.append(p) or answers_at_random(p), users)
    GRIPS(n_rounds=2, n_paraphrases=1).learn(given)
    phrases = {*split(MANUAL.role[0]), *split(MANUAL.reasoning[0])}
    requests = [prompt for prompt in asked if asks_for_words(prompt)]
    assert requests
    assert set(requests) <= {INSTRUCTION.replace("{sentence}", phrase) for phrase in phrases}


@pytest.mark.parametrize("method", [GRIPS, PersonalGRIPS, OracleGRIPS])
def test_bad_input(users, method):
    bare = replace(task(""), patterns=replace(SENTENCES, manual=None))
    with pytest.raises(InputError, match="add a section `manual`"):
        method().learn(bare)
    for wrong in ({"n_edits": 0}, {"patience": 0}, {"n_rounds": 0}, {"n_paraphrases": -1}):
        with pytest.raises(InputError, match="at least 1"):
            method(**wrong)
