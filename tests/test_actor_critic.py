"""The agents: shapes, distributions, draws."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from rpp.agents.actor_critic import ActorCritic, inverse_cdf
from rpp.evaluation import random_actions
from rpp.rollout import uniforms
from rpp.types import Episode, Item

N_ACTIONS = (3, 1, 9, 5)


@pytest.fixture
def agents():
    torch.manual_seed(0)
    agents = ActorCritic(N_ACTIONS, state_dim=8, hidden_dim=16)
    for actor in agents.actors:  # far from uniform
        torch.nn.init.normal_(actor[-1].weight)
    return agents


@pytest.mark.parametrize("n_users", [1, 2, 7])
@pytest.mark.parametrize("drawn", [False, True])
def test_shapes(agents, n_users, drawn):
    state = torch.randn(n_users, 8)
    decision = agents(state, torch.rand(n_users, 4) if drawn else None)
    for part in (decision.actions, decision.log_prob, decision.entropy, decision.value):
        assert part.shape == (n_users, 4)
    assert agents.log_probs(state).shape == (n_users, 4, 9)
    assert agents.value(state).shape == (n_users, 4)


def test_actions_a_pattern_does_not_have_have_probability_zero(agents):
    probs = agents.log_probs(torch.randn(5, 8) * 10).exp()
    for k, n in enumerate(N_ACTIONS):
        assert (probs[:, k, n:] == 0).all()
    assert torch.allclose(probs.sum(-1), torch.ones(5, 4))


def test_impossible_actions_are_never_drawn(agents):
    state = torch.randn(1, 8).expand(200, 8)
    draws = torch.rand(200, 4, dtype=torch.float64)
    draws[0], draws[1] = 0.0, 1 - 2**-53
    actions = agents(state, draws).actions
    assert (actions < torch.tensor(N_ACTIONS)).all()
    assert (actions >= 0).all()
    assert agents(state, draws).log_prob.isfinite().all()


def test_entropy_of_a_uniform_policy_is_the_logarithm_of_its_size():
    agents = ActorCritic(N_ACTIONS, state_dim=8)
    for actor in agents.actors:
        torch.nn.init.zeros_(actor[-1].weight)
    decision = agents(torch.randn(3, 8))
    expected = [math.log(n) for n in N_ACTIONS]
    for row in decision.entropy:
        assert row.tolist() == pytest.approx(expected, abs=1e-6)
    for row in decision.log_prob:
        assert row.tolist() == pytest.approx([-e for e in expected], abs=1e-6)


def test_policies_begin_close_to_uniform():
    torch.manual_seed(1)
    probs = ActorCritic(N_ACTIONS, state_dim=64).log_probs(torch.randn(50, 64)).exp()
    for k, n in enumerate(N_ACTIONS):
        assert (probs[:, k, :n] - 1 / n).abs().max() < 0.02


def test_log_prob_is_that_of_the_action_taken(agents):
    state = torch.randn(6, 8)
    for draws in (None, torch.rand(6, 4)):
        decision = agents(state, draws)
        log_probs = agents.log_probs(state)
        for user in range(6):
            for k in range(4):
                action = decision.actions[user, k]
                assert decision.log_prob[user, k] == log_probs[user, k, action]


def test_without_draws_the_most_probable_action_is_taken(agents):
    state = torch.randn(6, 8)
    assert torch.equal(agents(state).actions, agents.log_probs(state).argmax(-1))


@pytest.mark.parametrize(
    ("uniform", "expected"),
    [(0.0, 0), (0.1999, 0), (0.2001, 1), (0.4999, 1), (0.5001, 3), (0.9999, 3)],
)
def testinverse_cdf_by_hand(uniform, expected):
    probs = torch.tensor([[[0.2, 0.3, 0.0, 0.5, 0.0]]], dtype=torch.float64)
    assert inverse_cdf(probs, torch.tensor([[uniform]])).item() == expected


def test_an_action_of_probability_zero_is_not_drawn_at_the_very_edge():
    probs = torch.tensor([[[0.0, 0.5, 0.0, 0.5]]], dtype=torch.float64)
    assert inverse_cdf(probs, torch.tensor([[0.0]])).item() == 1
    assert inverse_cdf(probs, torch.tensor([[0.5]])).item() == 3


def test_draws_have_the_policys_frequencies(agents):
    state = torch.randn(1, 8).expand(4000, 8)
    actions = agents(state, uniforms((0, 1), people(range(4000)), 4)).actions
    probs = agents.log_probs(state[:1]).exp()[0]
    for k, n in enumerate(N_ACTIONS):
        counts = Counter(actions[:, k].tolist())
        for action in range(n):
            p = probs[k, action].item()
            assert counts[action] / 4000 == pytest.approx(p, abs=4 * math.sqrt(0.25 / 4000))


def test_a_users_decision_does_not_depend_on_the_batch(agents):
    state, users = torch.randn(7, 8), people(range(7))
    together = agents(state, uniforms((5, 0, 1), users, 4))
    turned = agents(state.flip(0), uniforms((5, 0, 1), users[::-1], 4))
    assert torch.equal(turned.actions.flip(0), together.actions)
    for k, user in enumerate(users):
        alone = agents(state[k : k + 1], uniforms((5, 0, 1), [user], 4))
        assert torch.equal(alone.actions[0], together.actions[k])
        assert torch.allclose(alone.value[0], together.value[k], atol=1e-6)
        assert torch.allclose(alone.log_prob[0], together.log_prob[k], atol=1e-6)


def people(users, number=0):
    """An episode of each of some users."""
    items = [Item(index, f"title {index}") for index in range(3)]
    return [Episode(user, (items[0],), (items[1], items[2]), 0, number=number) for user in users]


def test_uniforms_of_an_earlier_target_are_its_own():
    latest, earlier = people([4, 5]), people([4, 5], number=1)
    draws = uniforms((1, 2), [latest[0], earlier[0], earlier[1], latest[1]], 4)
    assert torch.equal(draws[[0, 3]], uniforms((1, 2), latest, 4))
    assert torch.equal(draws[[1, 2]], uniforms((1, 2), earlier, 4))
    assert len({tuple(row.tolist()) for row in draws}) == 4


def test_an_episode_that_stands_several_times_draws_on():
    """Its first draw is that of an episode alone, the others follow it."""
    (user, other) = people([4, 5])
    draws = uniforms((1, 2), [user, other, user, user], 4)
    assert torch.equal(draws[[0, 1]], uniforms((1, 2), [user, other], 4))
    expected = np.random.default_rng([1, 2, 4]).random((3, 4))
    assert torch.equal(draws[[0, 2, 3]], torch.from_numpy(expected))


def test_uniforms_depend_on_key_and_user_alone():
    draws = uniforms((1, 2), people([4, 5, 6]), 4)
    assert draws.shape == (3, 4)
    assert ((draws >= 0) & (draws < 1)).all()
    assert torch.equal(uniforms((1, 2), people([6, 9, 4]), 4)[[2, 0]], draws[[0, 2]])
    assert not torch.equal(uniforms((1, 3), people([4, 5, 6]), 4), draws)
    assert not torch.equal(uniforms((2, 2), people([4, 5, 6]), 4), draws)
    assert len({tuple(row.tolist()) for row in draws}) == 3


def test_agents_draw_independently():
    draws = uniforms((0,), people(range(2000)), 3)
    correlation = torch.corrcoef(draws.T) - torch.eye(3)
    assert correlation.abs().max() < 0.1


def test_random_actions_by_hand():
    draws = torch.tensor([[0.0, 0.0], [0.34, 0.99], [0.999, 0.5]], dtype=torch.float64)
    assert random_actions((3, 2), draws).tolist() == [[0, 0], [1, 1], [2, 1]]


def test_actors_and_critics_share_nothing(agents):
    """A loss of one agent moves its own networks only."""
    decision = agents(torch.randn(4, 8))
    decision.log_prob[:, 2].sum().backward()
    moved = {name.rsplit(".", 2)[0] for name, p in agents.named_parameters() if p.grad is not None
             and p.grad.abs().sum() > 0}  # fmt: skip
    assert moved == {"actors.2"}
    agents.zero_grad(set_to_none=True)
    agents.value(torch.randn(4, 8))[:, 1].sum().backward()
    moved = {name.rsplit(".", 2)[0] for name, p in agents.named_parameters() if p.grad is not None
             and p.grad.abs().sum() > 0}  # fmt: skip
    assert moved == {"critics.1"}


def test_every_parameter_receives_a_gradient(agents):
    decision = agents(torch.randn(16, 8))
    (decision.log_prob.sum() + decision.entropy.sum() + decision.value.sum()).backward()
    for name, parameter in agents.named_parameters():
        if not name.startswith("actors.1"):  # one option: nothing to learn
            assert parameter.grad.abs().sum() > 0, name


def test_a_sure_policy_has_entropy_zero_and_finite_gradients():
    agents = ActorCritic((2, 3), state_dim=4)
    for actor in agents.actors:
        with torch.no_grad():
            actor[-1].bias[0] = 1e4
    decision = agents(torch.randn(2, 4))
    assert decision.entropy.abs().max() < 1e-6
    (decision.entropy.sum() + decision.log_prob.sum()).backward()
    assert all(p.grad.isfinite().all() for p in agents.actors.parameters())
