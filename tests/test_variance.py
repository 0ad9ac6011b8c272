"""Variance components, by hand and on planted worlds."""

from __future__ import annotations

import numpy as np
import pytest
from planted import world

from rpp.variance import components, contrasts, covariance, jackknife, sums, with_interval

TWICE = np.array([0, 0, 1, 1])[:, None]
"""Actions of one pattern with two options, each twice."""


def groups(differences, noise=0.0):
    """One pattern; option 0 beats option 1 by these numbers, ``(U, T)``, each reward ± noise."""
    differences = np.asarray(differences, float)
    rewards = differences[..., None] * [1, 1, 0, 0] + noise * np.array([1, -1, 1, -1])
    actions = np.broadcast_to(TWICE, (*differences.shape, 4, 1))
    return rewards, actions


def test_contrasts_are_orthonormal_within_patterns():
    matrix = contrasts((2, 3))
    assert matrix.shape == (5, 3)
    assert matrix.T @ matrix == pytest.approx(np.eye(3))
    assert matrix[:2].sum() == pytest.approx(0)
    assert matrix @ matrix.T == pytest.approx(
        np.block([
            [np.eye(2) - 1 / 2, np.zeros((2, 3))],
            [np.zeros((3, 2)), np.eye(3) - 1 / 3],
        ])
    )  # fmt: skip


def test_what_lasts_by_hand():
    """Half the products of differences on two targets, less those of different users."""
    found = components(sums(*groups([[2, 4], [0, 2], [1, -3]]), (2,)))
    own = (2 * 4 + 0 * 2 + 1 * -3) / 3
    means = 3, 1, -1
    others = (3 * 1 + 3 * -1 + 1 * -1) / 3
    assert found.lasting == pytest.approx([(own - others) / 2])
    assert found.effects == pytest.approx([sum(means) / 3 / 2, -sum(means) / 3 / 2])


def test_what_is_within_a_target_by_hand():
    found = components(sums(*groups([[2, 4], [0, 2], [1, -3]], noise=0.5), (2,)))
    own = 2**2 + 4**2 + 0 + 2**2 + 1 + 3**2
    others = 2 * (3 * (1 - 1) + 1 * (3 - 1) - 1 * (3 + 1)) / 2
    products = 2 * (own - others)  # 4 v + 2 e each
    squares = own + 6 * 4 * 0.5**2 - others  # 2 v + 3 e each
    by_hand = np.linalg.solve([[4, 2], [2, 3]], [products / 6, squares / 6])
    assert found.within == pytest.approx(by_hand)


def test_levels_by_hand():
    rewards = np.repeat([[[0.2], [0.4]], [[0.6], [0.8]]], 4, axis=2)
    found = components(sums(rewards, groups([[0, 0], [0, 0]])[1], (2,)))
    assert found.levels == pytest.approx([0.08 - 0.02 / 2, 0.02])
    noisy = rewards + 0.1 * np.array([1, -1, 1, -1])
    found = components(sums(noisy, groups([[0, 0], [0, 0]])[1], (2,)))
    assert found.levels == pytest.approx([0.07, 0.02 - 0.04 / 3 / 4])


def test_levels_by_hand_where_a_target_was_never_ranked():
    rewards = np.repeat([[[0.2], [0.4], [0.6]], [[0.6], [0.8], [np.nan]]], 4, axis=2)
    found = components(sums(rewards, groups([[0, 0, 0], [0, 0, 0]])[1], (2,)))
    targets = (2 * 0.2**2 + 2 * 0.1**2) / (2 + 1)
    assert found.levels == pytest.approx([0.3**2 / 2 - targets * (1 / 3 + 1 / 2) / 2, targets])


def test_main_effects_are_found_whatever_the_levels_and_draws():
    rewards, actions, main = world(0, n_users=8, luck=0, rest=0)
    found = components(sums(rewards, actions, (3, 4, 9, 5)))
    assert found.effects == pytest.approx(np.concatenate(main), abs=1e-6)
    assert found.lasting == pytest.approx(np.zeros(4), abs=1e-9)


def test_a_missing_reward_is_left_out():
    rewards, actions, _ = world(1, n_users=6, n_prompts=9)
    holes = rewards.copy()
    holes[:, :, -1] = np.nan
    fewer = components(sums(rewards[:, :, :-1], actions[:, :, :-1], (3, 4, 9, 5)))
    for ours, theirs in zip(components(sums(holes, actions, (3, 4, 9, 5))), fewer, strict=True):
        assert ours == pytest.approx(theirs)


def test_an_option_that_was_never_drawn_has_no_effect():
    rewards, actions = groups([[2, 4], [0, 2], [1, -3]])
    found = components(sums(rewards, actions, (3,)))
    assert found.effects[2] == pytest.approx(0, abs=1e-6)
    assert np.isfinite(np.concatenate([found.lasting, found.within])).all()


def test_jackknife_of_a_mean_by_hand():
    values = np.array([1.0, 2.0, 3.0, 6.0])
    without = np.array([11 / 3, 10 / 3, 9 / 3, 6 / 3])
    error = values.std(ddof=1) / 2
    assert covariance(without[:, None])[0, 0] == pytest.approx(error**2)
    found = with_interval(3.0, without)
    assert found == pytest.approx((3.0, 3 - 3.182446 * error, 3 + 3.182446 * error))


@pytest.mark.parametrize(("lasting", "luck"), [(0.0, 0.1), (0.1, 0.05)])
def test_intervals_hold_the_truth_on_planted_worlds(lasting, luck):
    hits, seen = [], []
    for seed in range(12):
        drawn = world(seed, 40, 2, 8, (3, 4), lasting=lasting, luck=luck)
        those = sums(drawn[0], drawn[1], (3, 4))
        without = jackknife(those).lasting.sum(1)
        found = with_interval(components(those).lasting.sum(), without)
        hits.append(found.low <= lasting**2 <= found.high)
        seen.append(found.low > 0)
    assert sum(hits) >= 10
    assert sum(seen) >= 11 if lasting else sum(seen) <= 1
