"""The learner from logged rewards: finds what is planted, with one call a user; resumes."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from pipeline import PATTERNS, MadeUpUsers, environment, module, trainer
from test_learning import planted

from rpp.agents.reward_model import LoggedRewards
from rpp.callbacks.environment import N_CALIBRATION
from rpp.callbacks.reward_log import RewardLog
from rpp.learners.logged import RewardModelLearner
from rpp.llms.base import LanguageModelError
from rpp.llms.controls import answers_at_random
from rpp.types import InputError


def learner(**options):
    settings = {"history_lengths": [1, 4, 10], "n_static_prompts": 1} | options
    return RewardModelLearner(patterns=PATTERNS, **settings)


def part(logged, rows):
    """Some of the logged rewards."""
    return LoggedRewards(*(each[rows] for each in vars(logged).values()))


def chosen(model, episodes):
    """The reasoning sentence of every user."""
    with torch.no_grad():
        actions = model.greedy(model.first_state(episodes), 0, episodes).actions
    return actions[:, model.patterns.names.index("reasoning")].tolist()


@pytest.mark.parametrize("exploration", ["uniform", "thompson"])
def test_the_best_prompt_for_all_is_found(tmp_path, exploration):
    users = MadeUpUsers(n_train=80, n_validation=4, n_test=20)
    model = learner(exploration=exploration)
    env = environment(planted(users, lambda user: 3))
    trainer(tmp_path, env, max_epochs=3, limit_val_batches=0).fit(model, users)
    assert chosen(model, users.episodes("test")) == [3] * 20


@pytest.mark.parametrize(
    ("options", "least", "most"), [({}, 0.8, 1), ({"exploration": "uniform"}, 0, 0.2)]
)
def test_thompson_sampling_is_the_default_and_asks_good_prompts_more_often(
    tmp_path, options, least, most
):
    users = MadeUpUsers(n_train=80, n_validation=4, n_test=4)
    model = learner(**options)
    env = environment(planted(users, lambda user: 3))
    trainer(tmp_path, env, max_epochs=3, limit_val_batches=0).fit(model, users)
    at = model.patterns.names.index("reasoning")
    first, last = (
        (model.logged.actions[rows, at] == 3).double().mean()
        for rows in (slice(160), slice(-160, None))
    )
    assert first < 0.2  # of nine sentences
    assert least <= last <= most


def test_two_kinds_of_users_are_told_apart(tmp_path):
    users = MadeUpUsers(n_train=200, n_validation=4, n_test=50)

    def best_of(user):
        return 2 if users.vectors.users[user, 0] > 0 else 6

    model = learner(n_factors=16)
    env = environment(planted(users, best_of))
    trainer(tmp_path, env, max_epochs=4, limit_val_batches=0).fit(model, users)
    test = users.episodes("test")
    right = [a == best_of(e.user) for a, e in zip(chosen(model, test), test, strict=True)]
    assert sum(right) >= 43


def test_every_training_user_is_asked_as_often_as_said_and_a_test_user_once(tmp_path):
    users = MadeUpUsers(n_train=12, n_validation=4, n_test=6, batch_size=5)
    model = learner(n_draws=3, n_static_prompts=2)
    env = environment(answers_at_random)
    run = trainer(tmp_path, env, max_epochs=2)
    run.fit(model, users)
    assert len(model.logged.rewards) == 2 * 12 * 3
    assert sorted(model.logged.groups.unique(return_counts=True)[1].tolist()) == [6] * 12
    asked = {tuple(row) for row in model.logged.actions.tolist()}
    assert len(asked) > 40  # draws of a user and of its epochs differ
    counts = {split: len(users.episodes(split)) for split in ("train", "validation", "test")}
    assert model.max_fit_calls(counts, 4, 1) == 4 * 12 * 3 + 4 + 2 * 4
    run.test(model, users, verbose=False)
    assert len(model.test_results.ranks_by_step) == 1
    assert not any("first step" in name for name in model.test_results.ranks)


def test_a_resumed_fit_ends_as_one_that_was_not_stopped(tmp_path):
    users = MadeUpUsers(n_train=12, n_validation=4, n_test=6, batch_size=6)

    def fit(model, n_epochs, path=None):
        run = trainer(tmp_path, environment(answers_at_random), max_epochs=n_epochs)
        run.fit(model, users, ckpt_path=path)
        return run

    whole = learner(exploration="thompson")
    fit(whole, 3)
    fit(learner(exploration="thompson"), 2).save_checkpoint(tmp_path / "half.ckpt")
    resumed = learner(exploration="thompson")
    fit(resumed, 3, tmp_path / "half.ckpt")
    assert torch.equal(resumed.logged.actions, whole.logged.actions)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict())


def test_failed_calls_teach_nothing(tmp_path):
    users = MadeUpUsers(n_train=8, n_validation=4, n_test=6)
    failing = users.episodes("train")[0].candidates[0].title

    def reply(prompt):
        if failing in prompt.partition("candidate")[2]:
            return LanguageModelError("no answer")
        return answers_at_random(prompt)

    model = learner(n_draws=2)
    trainer(tmp_path, environment(reply), max_epochs=1, limit_val_batches=0).fit(model, users)
    assert 0 < len(model.logged.rewards) < 16
    assert model.logged.rewards.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"history_lengths": None}, "set model.history_lengths"),
        ({"n_draws": 0}, "n_draws is 0"),
        ({"n_steps": 2}, "n_steps is 2, but this learner"),
        ({"pairs": True, "history_lengths": list(range(1, 900))}, "compares all 121,365 prompts"),
    ],
)
def test_what_it_cannot_do_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        learner(**options)


def test_without_personal_effects_everyone_gets_the_same_prompt(tmp_path):
    users = MadeUpUsers(n_train=20, n_validation=4, n_test=30)
    model = learner(personal=False)
    env = environment(answers_at_random)
    trainer(tmp_path, env, max_epochs=1, limit_val_batches=0).fit(model, users)
    test = users.episodes("test")
    with torch.no_grad():
        actions = model.greedy(model.first_state(test), 0, test).actions
    assert (actions == actions[0]).all()
    assert model.title == "RPP, reward model, common"


def test_what_another_fit_has_paid_for_is_learnt_from_without_a_call(tmp_path):
    """Whichever learner it was: here the four agents."""
    users = MadeUpUsers(n_train=80, n_validation=4, n_test=20)
    path = tmp_path / "rewards.parquet"
    reply = planted(users, lambda user: 3)
    agents = module(n_steps=1, history_lengths=[1, 4, 10], entropy_coef=1.0, n_static_prompts=1)
    log = RewardLog(str(path))
    run = trainer(tmp_path, environment(reply), log, max_epochs=4, limit_val_batches=0)
    run.fit(agents, users)

    asked = []

    def count(prompt):
        asked.append(prompt)
        return "1. I have no idea"

    model = learner(n_draws=0, reward_log=str(path))
    run = trainer(tmp_path, environment(count), max_epochs=1, limit_val_batches=0)
    run.fit(model, users)
    assert len(asked) <= N_CALIBRATION  # which time and tokens are estimated by
    assert len(model.logged.rewards) == 4 * 80
    assert chosen(model, users.episodes("test")) == [3] * 20


def test_prompts_of_the_log_are_not_drawn_again(tmp_path):
    users = MadeUpUsers(n_train=8, n_validation=4, n_test=2)
    path = tmp_path / "rewards.parquet"
    log, env = RewardLog(str(path)), environment(answers_at_random)
    first, second = learner(), learner(reward_log=str(path))
    for model, callbacks in ((first, (log, env)), (second, (env,))):
        trainer(tmp_path, *callbacks, max_epochs=2, limit_val_batches=0).fit(model, users)
    n = len(first.logged.rewards)
    assert len(second.logged.rewards) == 2 * n
    asked, then, now = (
        sorted(torch.column_stack([logged.groups, logged.actions]).tolist())
        for logged in (first.logged, *map(partial(part, second.logged), (slice(n), slice(n, None))))
    )
    assert then == asked
    assert sum(row in asked for row in now) < n / 4


def test_a_log_of_other_sentences_is_refused(tmp_path):
    users = MadeUpUsers(n_train=8, n_validation=4, n_test=2)
    path = tmp_path / "rewards.parquet"
    env = environment(answers_at_random)
    log = RewardLog(str(path))
    trainer(tmp_path, env, log, max_epochs=1, limit_val_batches=0).fit(learner(), users)
    other = learner(reward_log=str(path), history_lengths=[2, 3])
    with pytest.raises(InputError, match="has no reward of these training users, patterns"):
        trainer(tmp_path, environment(answers_at_random), max_epochs=1).fit(other, users)


def test_probabilities_say_how_sure_the_model_is(tmp_path):
    users = MadeUpUsers(n_train=60, n_validation=4, n_test=5)
    model = learner()
    env = environment(planted(users, lambda user: 3))
    trainer(tmp_path, env, max_epochs=3, limit_val_batches=0).fit(model, users)
    test = users.episodes("test")
    probabilities = model.probabilities(model.first_state(test), 0, test)
    assert probabilities.shape == (5, 4, 9)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(5, 4))
    assert (probabilities[:, model.patterns.names.index("reasoning"), 3] > 0.9).all()
    assert float(probabilities[:, model.patterns.names.index("format")].max()) < 0.9
