"""A ranker without skill scores chance through the whole pipeline, a perfect one 1 (AUDIT 6.1)."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from pipeline import (
    MadeUpUsers,
    environment,
    module,
    shown_history,
    trainer,
)  # fmt: skip

from rpp.evaluation import random_choices
from rpp.llms.controls import SKILL_LESS, answers_at_random, copies_the_list, shown_candidates
from rpp.metrics import METRICS, chance, mean_interval
from rpp.rollout import Environment
from rpp.types import TargetAccessError, final_scoring

ROWS = [
    "RPP", "RPP, first step", "RPP, sampled", "RPP, prompts permuted", "random policy",
    "best static prompt",
]  # fmt: skip


@pytest.fixture(scope="module")
def users():
    return MadeUpUsers(n_train=60, n_validation=40, n_test=500, batch_size=100)


@pytest.mark.parametrize("reply", SKILL_LESS, ids=lambda f: f.__name__)
def test_no_skill_scores_chance(users, tmp_path, reply):
    """Trained, selected and tested like any other: no column of any row leaves its interval."""
    model = module(n_steps=3, n_static_prompts=4)
    run = trainer(tmp_path, environment(reply), max_epochs=2)
    run.fit(model, users)
    run.test(model, users, verbose=False)
    for row in ROWS:
        ranks = model.test_results.ranks[row]
        assert len(ranks) == 500
        for name in ("ndcg@1", "ndcg@5", "ndcg@10"):
            values = METRICS[name](ranks)
            # five rankers, six rows, three columns: each interval holds with 99.9 %
            interval = mean_interval(values, confidence=0.999)
            assert interval.low <= chance(name, 10) <= interval.high, (row, name, interval)


def test_perfect_ranker_scores_one(users, tmp_path):
    with final_scoring():
        target = {
            tuple(sorted(i.title for i in e.candidates)): e.candidates[e.target].title
            for split in ("train", "validation", "test")
            for e in users.episodes(split)
        }

    def knows(prompt):
        return "1. " + target[tuple(sorted(shown_candidates(prompt)))]

    model = module(n_steps=2, n_static_prompts=2)
    run = trainer(tmp_path, environment(knows), max_epochs=1)
    run.fit(model, users)
    run.test(model, users, verbose=False)
    for row in ROWS:
        assert model.test_results.ranks[row].tolist() == [1.0] * 500


def test_a_position_shared_by_all_users_would_be_noticed(users):
    """The fault this guards against: every target at one displayed position."""
    positions = np.bincount([e.withheld for e in users.episodes("test")], minlength=10)
    assert positions.min() > 20
    assert positions.max() < 85


def test_reading_a_test_target_before_scoring_raises(users, tmp_path):
    """Planted violation: a training step that peeks at a test user."""

    class Peeks(type(module())):
        def validation_step(self, batch, batch_idx):
            return self.trainer.datamodule.episodes("test")[0].target

    model = Peeks(patterns="conf/patterns/movies.yaml", n_steps=1)
    model.encoder = module().encoder
    with pytest.raises(TargetAccessError, match="test target of user"):
        trainer(tmp_path, environment(copies_the_list), max_epochs=1).fit(model, users)


def test_every_prompt_holds_its_own_users_history_and_candidates(users, tmp_path, monkeypatch):
    """For every user and step, in the order the parser will read."""
    model = module(n_steps=3, n_static_prompts=1)
    seen = 0
    send = Environment.step

    def check(self, episodes, actions, lengths, asks=True):
        nonlocal seen
        step = send(self, episodes, actions, lengths, asks)
        for episode, prompt, length, ranking in zip(
            episodes, step.prompts, lengths, step.rankings, strict=True
        ):
            assert shown_history(prompt.text) == [i.title for i in episode.history[-length:]]
            assert shown_candidates(prompt.text) == [i.title for i in episode.candidates]
            assert ranking.order == tuple(range(10))  # the list-copier's answer, parsed
            seen += 1
        return step

    monkeypatch.setattr(Environment, "step", check)
    run = trainer(tmp_path, environment(copies_the_list), max_epochs=1)
    run.fit(model, users)
    run.test(model, users, verbose=False)
    assert seen >= 60 * 3 + 40 * 3 + 500 * 3


def test_a_user_alone_or_in_any_company_is_ranked_the_same(users, tmp_path):
    model = module(n_steps=3)
    run = trainer(tmp_path, environment(answers_at_random), max_epochs=2)
    run.fit(model, users)
    env = environment(answers_at_random)
    env.setup(run, model, "test")
    episodes = users.episodes("validation")[:30]
    for policy in (model.greedy, model.sampled):
        together = model.play(episodes, policy, 3)
        backwards = model.play(episodes[::-1], policy, 3)
        for step, other in zip(together, backwards, strict=True):
            assert [r.order for r in step.rankings] == [r.order for r in other.rankings[::-1]]
        for k in (0, 7, 29):
            alone = model.play([episodes[k]], policy, 3)
            assert [t.rankings[0] for t in alone] == [t.rankings[k] for t in together]
    actions, lengths = random_choices(model.patterns, episodes, 3, (0,))
    turned, turned_lengths = random_choices(model.patterns, episodes[::-1], 3, (0,))
    assert torch.equal(actions, turned.flip(0))
    assert lengths == turned_lengths[::-1]
    for k in (0, 7, 29):
        own, length = random_choices(model.patterns, [episodes[k]], 3, (0,))
        assert (own[0].tolist(), length) == (actions[k].tolist(), [lengths[k]])


def test_a_failed_call_is_masked_and_asked_again(users, tmp_path):
    """A connection lost for one user in five is no reward of 0."""
    from rpp.types import LanguageModelError

    asked = []

    def flaky(prompt):
        asked.append(prompt)
        if (
            asked.count(prompt) == 1
            and int(hashlib.sha256(prompt.encode()).hexdigest(), 16) % 5 == 0
        ):
            return LanguageModelError("connection lost")
        return copies_the_list(prompt)

    model = module(n_steps=2)
    rewards = []
    update = model._update
    model._update = lambda transitions, baseline: (
        rewards.append(transitions[0].step.rewards()),
        update(transitions, baseline),
    )
    env = environment(flaky)
    run = trainer(tmp_path, env, max_epochs=1)
    run.fit(model, users)
    lost = torch.cat([reward.isnan() for reward in rewards])
    assert 0 < lost.float().mean() < 0.5
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    env.setup(run, model, "test")
    episodes = users.episodes("train")
    model.play(episodes, model.sampled, 1)
    again = model.play(episodes, model.sampled, 1)[0]
    assert not any(ranking.failed for ranking in again.rankings)
