"""The reward model: hand-computed posterior, recovered variances, planted effects found."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from rpp.agents.reward_model import LoggedRewards, RewardModel


def logged(rng, n_actions, n_groups, n_draws, effect, noise=0.01, level=0.3, n_features=2):
    """Uniform prompts; rewards are a level, ``effect(actions, features)`` and noise."""
    features = torch.tensor(rng.standard_normal((n_groups, n_features)))
    groups = torch.arange(n_groups).repeat_interleave(n_draws)
    actions = torch.tensor(np.stack([rng.integers(n, size=len(groups)) for n in n_actions], axis=1))
    levels = torch.tensor(rng.normal(0.6, level, n_groups))[groups]
    luck = torch.tensor(rng.normal(0, noise, len(groups)))
    rewards = levels + luck + effect(actions, features[groups])
    return LoggedRewards(actions, features[groups], groups, rewards)


def test_the_best_option_for_everyone_is_found():
    data = logged(
        np.random.default_rng(0), (3, 4), 60, 4,
        lambda actions, _: 0.05 * (actions[:, 0] == 2) + 0.03 * (actions[:, 1] == 1),
    )  # fmt: skip
    model = RewardModel((3, 4))
    model.fit(data)
    assert model.best(torch.zeros(5, 0)).tolist() == [[2, 1]] * 5


def test_the_best_option_of_each_kind_of_user_is_found():
    data = logged(
        np.random.default_rng(0), (2, 3), 80, 4,
        lambda actions, features: 0.05 * features[:, 0] * (2 * actions[:, 0] - 1),
    )  # fmt: skip
    model = RewardModel((2, 3), n_features=2)
    model.fit(data)
    users = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert model.best(users)[:, 0].tolist() == [1, 0]


def test_users_without_a_difference_get_the_same_prompt():
    """Personal effects are used only as far as users differ."""
    rng = np.random.default_rng(1)
    data = logged(rng, (3, 4), 100, 6, lambda actions, _: 0.05 * (actions[:, 0] == 2), noise=0.05)
    model = RewardModel((3, 4), n_features=2)
    model.fit(data)
    chosen = model.best(torch.tensor(rng.standard_normal((200, 2))))
    assert (chosen[:, 0] == 2).all()
    assert model.deviations["personal_0"] < 0.01


def test_a_pair_of_options_that_is_better_than_both_is_found():
    n_actions = (3, 3)
    data = logged(
        np.random.default_rng(0), n_actions, 80, 6,
        lambda actions, _: 0.1 * ((actions[:, 0] == 1) & (actions[:, 1] == 2)),
    )  # fmt: skip
    model = RewardModel(n_actions, n_features=0, pairs=True)
    model.fit(data)
    assert model.best(torch.zeros(1, 0)).tolist() == [[1, 2]]


def test_standard_deviations_are_those_of_the_rewards():
    rng = np.random.default_rng(3)
    n_groups, n_draws, n_actions = 400, 8, (4, 5)
    groups = torch.arange(n_groups).repeat_interleave(n_draws)
    actions = torch.tensor(np.stack([rng.integers(n, size=len(groups)) for n in n_actions], 1))
    of_option = torch.tensor(rng.normal(0, 0.1, (n_groups, 4)))[groups, actions[:, 0]]
    rest = torch.tensor(rng.normal(0, 0.04, len(groups)))
    level = torch.tensor(rng.normal(0.6, 0.25, n_groups))[groups]
    model = RewardModel(n_actions)
    model.fit(LoggedRewards(actions, torch.zeros(len(groups), 0), groups, level + of_option + rest))
    found = model.deviations
    assert found["level"] == pytest.approx(0.25, rel=0.15)
    assert found["target_0"] == pytest.approx(0.1, rel=0.1)
    assert found["rest"] == pytest.approx(0.04, rel=0.1)
    assert max(found["common_0"], found["common_1"], found["target_1"]) < 0.015


def test_a_prompt_that_was_asked_twice_tells_nothing_new():
    """Its reward is the same again, which is no proof of its options' worth."""
    once = logged(
        np.random.default_rng(4), (3, 4), 60, 4, lambda actions, _: 0.02 * actions[:, 0], 0.08
    )
    twice = LoggedRewards(*(torch.cat([each, each]) for each in vars(once).values()))
    models = [RewardModel((3, 4)), RewardModel((3, 4))]
    for model, data in zip(models, (once, twice), strict=True):
        model.fit(data)
    first, second = models
    torch.testing.assert_close(second.mean, first.mean, atol=0.004, rtol=0.1)
    assert second.deviations["prompt"] == pytest.approx(0.08, rel=0.2)
    assert max(second.deviations["target_0"], second.deviations["target_1"]) < 0.03


def test_posterior_is_that_of_the_normal_equations():
    """With the variances found, mean and covariance are those of the dense formula."""
    rng = np.random.default_rng(2)
    data = logged(rng, (2, 3), 7, 3, lambda actions, _: 0.1 * (actions[:, 0] == 1), noise=0.05)
    model = RewardModel((2, 3), n_features=2)
    model.fit(data)
    variances = model.log_variances.double().exp().numpy()
    kinds = list(model.sizes.values())
    prior = np.repeat(variances[: len(kinds)], kinds)
    *luck, level, rest = variances[len(kinds) :]
    design = np.hstack(
        [model.design(data.actions, data.features).numpy(), np.ones((len(data.rewards), 1))]
    )
    same_group = data.groups[:, None] == data.groups
    noise = rest * np.eye(len(design)) + level * same_group.numpy()
    alike = data.actions[:, None] == data.actions
    for variance, same in zip(luck, (*alike.unbind(-1), alike.all(-1)), strict=True):
        noise = noise + variance * (same_group & same).numpy()
    inverse = np.linalg.inv(noise)
    covariance = np.linalg.inv(design.T @ inverse @ design + np.diag(1 / np.append(prior, 1e2)))
    rewards = data.rewards.numpy() - data.rewards.mean().item()
    mean = covariance @ design.T @ inverse @ rewards
    np.testing.assert_allclose(model.mean.numpy(), mean[:-1], atol=1e-5)
    root = model.root.double().numpy()
    np.testing.assert_allclose(root @ root.T, covariance[:-1, :-1], atol=1e-6)


def test_effects_of_a_prompt_by_hand():
    model = RewardModel((2, 3), n_features=2, pairs=True)
    row = model.design(torch.tensor([[1, 2]]), torch.tensor([[3.0, 4.0]]))[0]
    half = 2**0.5
    common = [0, 1, 0, 0, 1]
    personal = [0, 0, 3 / half, 4 / half, 0, 0, 0, 0, 3 / half, 4 / half]
    pairs = [0, 0, 0, 0, 0, 1]
    torch.testing.assert_close(row, torch.tensor([*common, *personal, *pairs]).double())


def test_best_prompt_is_that_of_all_prompts():
    torch.manual_seed(0)
    model = RewardModel((2, 3, 2), n_features=3, pairs=True)
    model.mean.copy_(torch.randn(len(model.mean)))
    users = torch.randn(6, 3)
    every = torch.tensor([*product(range(2), range(3), range(2))])
    for user, chosen in zip(users, model.best(users), strict=True):
        values = model.design(every, user.expand(len(every), -1)).float() @ model.mean
        assert chosen.tolist() == every[values.argmax()].tolist()


def test_draws_have_the_covariance_of_the_posterior():
    """An option whose effect is uncertain is drawn as the best one about as often as it should."""
    model = RewardModel((2,))
    model.mean.copy_(torch.tensor([0.0, 0.1]))
    model.root.copy_(torch.tensor([[0.1, 0.0], [0.0, 0.0]]))
    normals = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    share = (model.best(torch.zeros(4000, 0), normals) == 0).float().mean()
    assert float(share) == pytest.approx(0.159, abs=0.02)  # P(N(0, 1) > 1)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("n_features", [0, 3])
def test_draws_together_are_those_one_by_one(pairs, n_features):
    torch.manual_seed(0)
    model = RewardModel((2, 3, 2), n_features, pairs=pairs)
    model.mean.copy_(torch.randn(len(model.mean)))
    model.root.copy_(torch.randn_like(model.root).tril())
    users, normals = torch.randn(6, n_features), torch.randn(40, len(model.mean))
    together = model.best_by_draws(users, normals)
    assert together.shape == (40, 6, 3)
    for row, draw in zip(together, normals, strict=True):
        assert torch.equal(row, model.best(users, draw.expand(6, -1)))
    assert len(together.flatten(0, 1).unique(dim=0)) > 3


@pytest.mark.parametrize("rewards", [[0.5] * 6, [0.5]], ids=["all equal", "a single one"])
def test_rewards_that_tell_nothing_do_no_harm(rewards):
    n = len(rewards)
    data = LoggedRewards(
        torch.zeros(n, 2).long(), torch.zeros(n, 1), torch.zeros(n).long(), torch.tensor(rewards)
    )
    model = RewardModel((2, 2), n_features=1)
    model.fit(data)
    assert model.mean.isfinite().all()
    assert model.root.isfinite().all()
