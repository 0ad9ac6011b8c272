"""Returns and losses, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rpp.agents.losses import (
    approx_kl,
    clip_fraction,
    clipped_surrogate,
    critic_loss,
    explained_variance,
    gae,
    horizon,
    n_step_returns,
    normalised,
    others_mean,
)

NAN = math.nan

REWARDS = torch.tensor([[0.1], [0.2], [0.4]], dtype=torch.float64)  # T = 3, B = 1
VALUES = torch.tensor([[[10.0]], [[20.0]], [[0.0]]], dtype=torch.float64)  # of the states reached


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, [0.1 + 0.5 * 10, 0.2 + 0.5 * 20, 0.4 + 0.5 * 0]),
        (2, [0.1 + 0.5 * 0.2 + 0.25 * 20, 0.2 + 0.5 * 0.4 + 0.25 * 0, 0.4]),
        (3, [0.1 + 0.5 * 0.2 + 0.25 * 0.4, 0.2 + 0.5 * 0.4, 0.4]),
        (99, [0.1 + 0.5 * 0.2 + 0.25 * 0.4, 0.2 + 0.5 * 0.4, 0.4]),
    ],
    ids=["one step", "two steps", "Monte Carlo", "more than there are"],
)
def test_returns_by_hand(n, expected):
    returns = n_step_returns(REWARDS, VALUES, discount=0.5, n=n)
    assert returns.shape == (3, 1, 1)
    assert returns.flatten().tolist() == pytest.approx(expected)


def test_returns_of_a_bandit_are_the_rewards():
    returns = n_step_returns(REWARDS, VALUES, discount=0.0, n=1)
    assert torch.equal(returns[:, :, 0], REWARDS)


def test_every_user_has_their_own_reward_and_every_agent_its_own_value():
    rewards = torch.tensor([[0.0, 1.0]])  # two users
    values = torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]])  # three agents
    returns = n_step_returns(rewards, values, discount=0.1, n=1)
    assert returns[0, 0].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert returns[0, 1].tolist() == pytest.approx([1.4, 1.5, 1.6])


def test_failed_call_spoils_the_returns_that_need_it_and_no_other():
    rewards = torch.tensor([[0.1, 0.1], [NAN, 0.2], [0.4, 0.4]])
    values = torch.ones(3, 2, 1)
    one = n_step_returns(rewards, values, discount=0.5, n=1)[..., 0]
    assert one[:, 0].isnan().tolist() == [False, True, False]
    two = n_step_returns(rewards, values, discount=0.5, n=2)[..., 0]
    assert two[:, 0].isnan().tolist() == [True, True, False]
    assert not one[:, 1].isnan().any()
    assert not two[:, 1].isnan().any()


def test_bootstrap_value_is_held_constant():
    values = VALUES.clone().requires_grad_()
    assert not n_step_returns(REWARDS, values, discount=0.5, n=2).requires_grad


@pytest.mark.parametrize(
    ("rewards", "values"),
    [((3, 2), (3, 1, 4)), ((3, 2), (2, 2, 4)), ((3, 2), (3, 2)), ((2, 3), (3, 2, 4))],
)
def test_returns_refuse_shapes_that_would_broadcast(rewards, values):
    with pytest.raises(ValueError, match="shapes differ"):
        n_step_returns(torch.zeros(rewards), torch.zeros(values), 0.9, 1)


@pytest.mark.parametrize("n", [0, -1])
def test_returns_need_a_reward(n):
    with pytest.raises(ValueError, match=f"n is {n}"):
        n_step_returns(REWARDS, VALUES, 0.9, n)


def test_critic_loss_by_hand():
    returns = torch.tensor([[1.0, 0.0], [0.5, 2.0]])  # two users, two agents
    values = torch.tensor([[0.0, 0.5], [1.0, 0.0]])
    loss = critic_loss(returns, values)
    assert loss.tolist() == pytest.approx([(1.0**2 + 0.5**2) / 2, (0.5**2 + 2.0**2) / 2])


def test_critic_is_pulled_towards_the_return():
    returns = torch.tensor([[1.0], [1.0]], requires_grad=True)
    values = torch.tensor([[0.0], [3.0]], requires_grad=True)
    critic_loss(returns, values).sum().backward()
    assert values.grad.flatten().tolist() == pytest.approx([-2 * 1 / 2, 2 * 2 / 2])
    assert returns.grad is None


def actor_loss(log_prob, advantage, entropy, entropy_coef):
    """The loss in the first pass: the ratio is 1, and its gradient that of the log-probability."""
    return clipped_surrogate(log_prob, log_prob, advantage, entropy, 0.2, entropy_coef)


def test_descent_makes_good_actions_likelier_and_policies_broader():
    log_prob = torch.tensor([[-1.0], [-1.0]], requires_grad=True)
    entropy = torch.tensor([[0.5], [0.5]], requires_grad=True)
    actor_loss(log_prob, torch.tensor([[2.0], [-3.0]]), entropy, 0.1).sum().backward()
    assert log_prob.grad.flatten().tolist() == pytest.approx([-2 / 2, 3 / 2])
    assert entropy.grad.flatten().tolist() == pytest.approx([-0.1 / 2, -0.1 / 2])


def test_advantage_passes_no_gradient_to_the_critic():
    value = torch.tensor([[0.3], [0.6]], requires_grad=True)
    log_prob = torch.tensor([[-1.0], [-2.0]], requires_grad=True)
    actor_loss(log_prob, 1 - value, torch.zeros(2, 1), 0.0).sum().backward()
    assert value.grad is None
    assert log_prob.grad.abs().sum() > 0


def test_failed_calls_are_left_out_of_the_means():
    returns = torch.tensor([[1.0], [NAN], [3.0]])
    values = torch.tensor([[0.0], [5.0], [1.0]], requires_grad=True)
    log_prob = torch.tensor([[-1.0], [-9.0], [-2.0]], requires_grad=True)
    entropy = torch.tensor([[0.1], [0.9], [0.3]], requires_grad=True)
    critic = critic_loss(returns, values)
    actor = actor_loss(log_prob, returns - values, entropy, 0.5)
    assert critic.tolist() == pytest.approx([(1 + 4) / 2])
    assert actor.tolist() == pytest.approx([-(1 + 0.5 * 0.1 + 2 + 0.5 * 0.3) / 2])
    (critic + actor).sum().backward()
    for leaf in (values, log_prob, entropy):
        assert leaf.grad.isfinite().all()
        assert leaf.grad[1] == 0
        assert (leaf.grad[[0, 2]] != 0).all()


def test_nothing_but_failures_is_no_loss():
    returns = torch.full((2, 3), NAN)
    values = torch.zeros(2, 3, requires_grad=True)
    loss = critic_loss(returns, values) + actor_loss(values, returns, values, 0.1)
    assert loss.tolist() == [0, 0, 0]
    loss.sum().backward()
    assert values.grad.abs().sum() == 0


def test_losses_are_means_over_steps_and_users_for_every_agent():
    returns, values = torch.rand(4, 5, 3), torch.rand(4, 5, 3)
    expected = [((returns - values)[..., k] ** 2).mean().item() for k in range(3)]
    assert critic_loss(returns, values).tolist() == pytest.approx(expected)


def test_losses_refuse_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match="shapes differ"):
        critic_loss(torch.zeros(4, 1), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="shapes differ"):
        actor_loss(torch.zeros(4, 3), torch.zeros(4, 1), torch.zeros(4, 3), 0.1)
    with pytest.raises(ValueError, match="shapes differ"):
        actor_loss(torch.zeros(4, 1), torch.zeros(4, 1), torch.zeros(4, 3), 0.1)


def test_what_a_user_gets_anyway_by_hand():
    """Group 0 has two draws and two rewards of before, group 1 a single one, group 2 a failure."""
    rewards = torch.tensor([[0.2, 0.4, 0.9, NAN], [0.6, 0.8, NAN, NAN]])
    groups = torch.tensor([0, 0, 1, 2])
    total, n_total = torch.tensor([1.0 + 2.0, 0.9, 0.5]), torch.tensor([2 + 4, 1, 1])
    expected = [
        (1.0 + 0.4 + 0.8) / 4,
        (1.0 + 0.2 + 0.6) / 4,
        (1.0 + 0.2 + 0.6 + 0.4 + 0.8 + 0.5) / 7,  # no other of its own: that of the others
        0.5,
    ]
    assert others_mean(rewards, groups, total, n_total).tolist() == pytest.approx(expected)


def test_nobody_else_is_no_baseline():
    rewards = torch.tensor([[0.3]])
    only = others_mean(rewards, torch.tensor([0]), rewards[0], torch.ones(1))
    assert only.isnan().all()


def test_horizon_by_hand():
    assert horizon(0, 0.5) == 0
    assert horizon(3, 0.5) == 1 + 0.5 + 0.25
    assert horizon(4, 0.0) == 1


# PPO

STATE_VALUES = torch.tensor([[[1.0]], [[2.0]], [[3.0]]], dtype=torch.float64)  # of the states left


@pytest.mark.parametrize(
    ("gae_lambda", "expected"),
    [
        (0.0, [0.1 + 0.5 * 2 - 1, 0.2 + 0.5 * 3 - 2, 0.4 - 3]),
        (0.5, [0.1 + 0.25 * (-0.3 + 0.25 * -2.6), -0.3 + 0.25 * -2.6, -2.6]),
        (1.0, [0.1 + 0.5 * 0.2 + 0.25 * 0.4 - 1, 0.2 + 0.5 * 0.4 - 2, 0.4 - 3]),
    ],
)
def test_gae_by_hand(gae_lambda, expected):
    advantage = gae(REWARDS, STATE_VALUES, discount=0.5, gae_lambda=gae_lambda)
    assert advantage.flatten().tolist() == pytest.approx(expected)


def test_gae_at_the_end_of_a_failed_call():
    """The step that failed has none; the one before trusts the value of the state it reached."""
    rewards = REWARDS.clone()
    rewards[1] = NAN
    advantage = gae(rewards, STATE_VALUES, discount=0.5, gae_lambda=1.0).flatten()
    assert advantage.isnan().tolist() == [False, True, False]
    assert advantage[[0, 2]].tolist() == pytest.approx([0.1 + 0.5 * 2 - 1, 0.4 - 3])


def test_gae_mixes_neither_users_nor_agents_and_is_held_constant():
    rewards = torch.rand(4, 3)
    values = torch.rand(4, 3, 2, requires_grad=True)
    together = gae(rewards, values, 0.9, 0.8)
    assert not together.requires_grad
    for user in range(3):
        for k in range(2):
            alone = gae(
                rewards[:, user : user + 1], values[:, user : user + 1, k : k + 1], 0.9, 0.8
            )
            assert torch.allclose(alone.flatten(), together[:, user, k])


@pytest.mark.parametrize("values", [(3, 2), (2, 2, 1), (3, 1, 1)])
def test_gae_refuses_shapes_that_would_broadcast(values):
    with pytest.raises(ValueError, match="shapes differ"):
        gae(torch.zeros(3, 2), torch.zeros(values), 0.9, 0.9)


def test_normalised_by_hand():
    advantage = torch.tensor([[1.0, 5.0], [NAN, 5.0], [3.0, 5.0]])
    scaled = normalised(advantage)
    assert scaled[[0, 2], 0].tolist() == pytest.approx([-1, 1])  # mean 2, deviation 1
    assert scaled[1, 0].isnan()
    assert scaled[:, 1].tolist() == [0, 0, 0]


SURROGATE = [  # ratio, advantage, gain with a clip of .2, whether the policy is still moved
    (1.1, 2.0, 1.1 * 2.0, True),
    (1.5, 2.0, 1.2 * 2.0, False),
    (0.5, 2.0, 0.5 * 2.0, True),
    (1.5, -2.0, 1.5 * -2.0, True),
    (0.5, -2.0, 0.8 * -2.0, False),
    (0.9, -2.0, 0.9 * -2.0, True),
]


@pytest.mark.parametrize(("ratio", "advantage", "gain", "moved"), SURROGATE)
def test_clipped_surrogate_by_hand(ratio, advantage, gain, moved):
    old = torch.tensor([[math.log(0.4)]])
    new = torch.tensor([[math.log(0.4 * ratio)]], requires_grad=True)
    entropy = torch.tensor([[0.7]], requires_grad=True)
    loss = clipped_surrogate(new, old, torch.tensor([[advantage]]), entropy, 0.2, 0.01)
    assert loss.tolist() == pytest.approx([-(gain + 0.01 * 0.7)])
    loss.sum().backward()
    assert new.grad.item() == pytest.approx(-ratio * advantage if moved else 0)
    assert entropy.grad.item() == pytest.approx(-0.01)


def test_clipped_surrogate_leaves_failed_calls_out():
    new = torch.tensor([[-1.0], [-9.0], [-2.0]], requires_grad=True)
    entropy = torch.tensor([[0.1], [0.9], [0.3]], requires_grad=True)
    advantage = torch.tensor([[1.0], [NAN], [-2.0]])
    loss = clipped_surrogate(new, new.detach(), advantage, entropy, 0.2, 0.5)
    assert loss.tolist() == pytest.approx([-(1 + 0.5 * 0.1 - 2 + 0.5 * 0.3) / 2])
    loss.sum().backward()
    assert new.grad.flatten().tolist() == pytest.approx([-1 / 2, 0, 2 / 2])
    assert entropy.grad.flatten().tolist() == pytest.approx([-0.25, 0, -0.25])
    nothing = torch.full((3, 1), NAN)
    assert clipped_surrogate(new, new, nothing, entropy, 0.2, 0.5).tolist() == [0]


def test_clipped_surrogate_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match="shapes differ"):
        clipped_surrogate(*(torch.zeros(4, n) for n in (3, 3, 1, 3)), 0.2, 0.01)


# What an update has done


def test_approximate_kl_by_hand():
    """Ratios 1, 2 and 1/2 of two agents; what is not known is left out."""
    ratio = torch.tensor([[1.0, 2.0], [0.5, 7.0]])
    known = torch.tensor([[True, True], [True, False]])
    expected = [(0 + (0.5 - 1 - math.log(0.5))) / 2, 2 - 1 - math.log(2)]
    assert approx_kl(ratio.log(), known).tolist() == pytest.approx(expected)


def test_clip_fraction_by_hand():
    """Of 1, 1.1, 1.3 and 0.7 two lie further than .2 from 1."""
    ratio = torch.tensor([[1.0], [1.1], [1.3], [0.7]])
    known = torch.ones_like(ratio, dtype=torch.bool)
    assert clip_fraction(ratio.log(), known, 0.2).tolist() == [0.5]
    known[2] = False
    assert clip_fraction(ratio.log(), known, 0.2).tolist() == pytest.approx([1 / 3])


def test_explained_variance_by_hand():
    """Returns 1, 2, 3 vary by 2/3; residuals 0, 0, 1 by 2/9."""
    returns = torch.tensor([1.0, 2.0, 3.0, math.nan])
    values = torch.tensor([1.0, 2.0, 2.0, 9.0])
    assert float(explained_variance(values, returns)) == pytest.approx(1 - (2 / 9) / (2 / 3))
    assert float(explained_variance(returns, returns)) == 1
    assert float(explained_variance(torch.zeros(4), returns)) == 0
    assert explained_variance(values, torch.ones(4)).isnan()
