"""GRIPS: what the search finds, and what it may not look at."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from grips_setup import MANUAL, PLACEHOLDER, SENTENCES, asks_for_words, ndcg_of, planted, task
from grips_setup import users as users
from pipeline import MadeUpUsers, shown_history

from rpp.comparison.grips import GRIPS, OracleGRIPS, PersonalGRIPS, validation_episode
from rpp.llms.base import ScriptedLanguageModel
from rpp.llms.cache import ReplyCache
from rpp.llms.cached import CachedLanguageModel
from rpp.llms.controls import SKILL_LESS, answers_at_random, shown_candidates
from rpp.metrics import chance, mean_interval
from rpp.prompts.refine import Refiner
from rpp.types import TargetAccessError


def test_an_instruction_better_for_all_is_found(users):
    def is_good(user, prompt):
        return "one step at a time" not in prompt

    ranks = GRIPS(n_edits=40).learn(task(planted(users, is_good), users))
    test = users.episodes("test")
    assert (ndcg_of(ranks(test), test) == 1).all()


def test_better_words_are_found_through_the_refiner(users):
    """The ranker's own model knows no other words; the refiner does, and only they help."""
    llm = ScriptedLanguageModel(reply=lambda p: f"Oh, {asks_for_words(p)}", name="other")
    refiner = Refiner(CachedLanguageModel(llm, ReplyCache(None)), SENTENCES, "titles")
    reply = planted(users, lambda user, prompt: "Oh, " in prompt)
    test = users.episodes("test")
    without = GRIPS().learn(task(reply, users))(test)
    assert ndcg_of(without, test).mean() == pytest.approx(1 / np.log2(11))  # the last of ten
    ranks = GRIPS().learn(task(reply, users, refiner))(test)
    assert (ndcg_of(ranks, test) == 1).all()


def test_an_instruction_better_for_one_is_found(users):
    """Half of the users are annoyed by one phrase, half by another that the first half needs."""
    step, love = "one step at a time", "that people end up loving"

    def is_good(user, prompt):
        wanted, unwanted = (step, love) if user % 2 else (love, step)
        return wanted in prompt and unwanted not in prompt

    test = users.episodes("test")
    reply = planted(users, is_good)
    own = ndcg_of(PersonalGRIPS(n_edits=40).learn(task(reply, users))(test), test)
    shared = ndcg_of(GRIPS(n_edits=40).learn(task(reply, users))(test), test)
    assert (own == 1).double().mean() > 0.95
    assert ((shared == 1) == (torch.arange(len(test)) % 2 == shared.argmax() % 2)).all()


@pytest.mark.parametrize("method", [GRIPS, PersonalGRIPS, OracleGRIPS])
def test_calls_are_bounded_and_start_with_the_manual_prompt(users, method):
    asked = []
    given = task(lambda p: asked.append(p) or answers_at_random(p), users)
    test = users.episodes("test")
    grips = method(n_edits=3, n_rounds=2)
    ranks = grips.learn(given)
    rankings = ranks(test)
    assert [len(r.order) for r in rankings] == [10] * len(test)
    manual = MANUAL.reasoning[0].replace(PLACEHOLDER, "10")
    n_scored = 20 if method is GRIPS else 30
    assert all(manual in prompt for prompt in asked[:n_scored])
    n_paraphrases = sum(bool(asks_for_words(prompt)) for prompt in asked)
    assert 0 < n_paraphrases <= 2 * 3 * (1 if method is GRIPS else 30)
    assert n_scored < given.ranker.counters.calls <= grips.max_calls(given, len(test))
    history = {len(shown_history(prompt)) for prompt in asked if not asks_for_words(prompt)}
    assert history == {SENTENCES.manual.history}
    with_words = grips.max_calls(given, 30)
    assert with_words - method(3, 2, 2, 0).max_calls(given, 30) == 6 * (
        1 if method is GRIPS else 30
    )


def test_patience_ends_a_search_and_so_does_a_perfect_score(users):
    asked = []

    def copies(prompt):  # every instruction is as good as any other
        asked.append(prompt)
        return "\n".join(shown_candidates(prompt))

    given = task(copies, users)
    one = users.episodes("test")[:1]
    scored = []

    class Notes(PersonalGRIPS):
        def rewards(self, rankings, episodes):
            scored.append(len(rankings))
            return super().rewards(rankings, episodes)

    own = validation_episode(one[0], users.catalogue, 0)
    assert own.target > 0
    Notes(n_edits=4, patience=3, n_paraphrases=0).learn(given)(one)
    assert scored == [1, 4, 4, 4]
    assert not any(asks_for_words(prompt) for prompt in asked)
    scored.clear()
    perfect = task(planted(users, lambda user, prompt: True), users)
    Notes().learn(perfect)(one)
    assert scored == [1]


def test_reordering_users_reorders_the_output(users):
    test = users.episodes("test")[:12]
    ranks = PersonalGRIPS(n_rounds=2).learn(task(answers_at_random, users))
    turned = PersonalGRIPS(n_rounds=2).learn(task(answers_at_random, users))
    assert [r.order for r in turned(test[::-1])] == [r.order for r in ranks(test)][::-1]


def test_negatives_are_new_to_the_user_and_no_test_target_is_read(users):
    positions = []
    for episode in users.episodes("test"):
        own = validation_episode(episode, users.catalogue, 5)
        positions.append(own.target)  # readable: it is no test episode
        assert own.split == "validation"
        assert own.candidates[own.target] == episode.history[-1]
        assert own.history == episode.history[:-1]
        others = {item.index for item in own.candidates} - {episode.history[-1].index}
        assert len(others) == 9
        assert not others & {i.index for i in (*episode.history, *episode.candidates)}
        assert own == validation_episode(episode, users.catalogue, 5)
        assert own != validation_episode(episode, users.catalogue, 6)
    assert len(set(positions)) > 5
    episode = users.episodes("test")[0]
    with pytest.raises(TargetAccessError):
        _ = episode.target
    few = validation_episode(episode, [*episode.history, *episode.candidates], 5)
    assert few.candidates == (episode.history[-1],)  # nothing is left to tell it from


def test_the_other_test_candidates_do_not_show_in_the_search(users):
    """Were the test target looked at, moving it would change what is found."""
    test = users.episodes("test")[:10]
    moved = [replace(e, withheld=(e.withheld + 1) % 10) for e in test]
    found = []
    for episodes in (test, moved):
        ranks = PersonalGRIPS(n_rounds=3).learn(task(answers_at_random, users))
        found.append([r.reply for r in ranks(episodes)])
    assert found[0] == found[1]
    ranks = OracleGRIPS(n_rounds=3).learn(task(answers_at_random, users))
    assert [r.reply for r in ranks(test)] != [r.reply for r in ranks(moved)]


def test_a_user_with_one_past_item_keeps_the_manual_prompt(users):
    prompts = []
    short = [replace(e, history=e.history[-1:]) for e in users.episodes("test")[:3]]
    long = users.episodes("test")[3:5]
    given = task(lambda p: prompts.append(p) or answers_at_random(p), users)
    rankings = PersonalGRIPS(n_paraphrases=0).learn(given)([short[0], *long, *short[1:]])
    assert [r.status for r in rankings] == ["valid"] * 5
    own = [p for p in prompts if len(shown_history(p)) == 1]
    assert len(own) == 3
    assert all(MANUAL.role[0] in p for p in own)


HONEST = [GRIPS, PersonalGRIPS]


@pytest.mark.parametrize("reply", SKILL_LESS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("method", HONEST, ids=lambda m: m.__name__)
def test_no_skill_scores_chance(reply, method):
    users = MadeUpUsers(n_train=1, n_validation=10, n_test=300, seed=2)
    assert not method.is_oracle
    test = users.episodes("test")
    rankings = method(n_edits=3, n_rounds=2).learn(task(reply, users))(test)
    for name in ("ndcg@1", "ndcg@10"):
        interval = mean_interval(ndcg_of(rankings, test, name), confidence=0.999)
        assert interval.low <= chance(name, 10) <= interval.high, interval


def test_the_oracle_makes_a_random_ranker_shine(users):
    """The figures that a search on the tested interaction gives to no skill at all."""
    assert OracleGRIPS.is_oracle
    assert OracleGRIPS.name == "grips_oracle"
    test = users.episodes("test")
    rankings = OracleGRIPS().learn(task(answers_at_random, users))(test)
    assert mean_interval(ndcg_of(rankings, test, "ndcg@1"), confidence=0.999).low > 0.4
    assert chance("ndcg@1", 10) == pytest.approx(0.1)
