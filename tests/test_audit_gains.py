"""What can be won and at how many calls, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from planted import world
from scipy.stats import ncx2

from rpp.audit.findings import find, spread
from rpp.audit.gains import (
    common_gain,
    expected_largest,
    groups_to_find,
    main_effects_variance,
    personal_gain,
)
from rpp.types import InputError

OPTIONS = {"role": 3, "history": 4, "reasoning": 9, "format": 5}


def noise(n, variance):
    """Covariance of the estimated effects of options, less their mean."""
    return variance * (np.eye(n) - 1 / n)


def test_expected_largest_by_hand():
    root = math.sqrt(math.pi)
    assert expected_largest((2, 3)) == pytest.approx([1 / root, 3 / (2 * root)])


def test_variance_of_main_effects_less_their_noise():
    found = main_effects_variance(np.array([0.1, -0.1, 0.0]), noise(3, 0.001))
    assert found.mean == pytest.approx(0.02 / 2 - 0.001)
    for end, tail in ((found.low, 0.975), (found.high, 0.025)):
        assert ncx2.cdf(0.02 / 0.001, 2, end * 2 / 0.001) == pytest.approx(tail)
    assert main_effects_variance(np.array([0.001, -0.001]), noise(2, 0.01)).low == 0
    assert main_effects_variance(np.array([0.1, -0.1]), noise(2, 0.0)) == pytest.approx([0.02] * 3)


def test_gain_of_the_best_common_prompt():
    clear = [np.array([0.1, -0.1]), np.array([0.05, 0.0, -0.05])]
    sure = common_gain(clear, [noise(2, 1e-12), noise(3, 1e-12)])
    assert sure == pytest.approx([0.15] * 3, abs=1e-4)
    unsure = common_gain(clear, [noise(2, 0.02), noise(3, 0.02)])
    assert unsure.low == 0
    assert unsure.mean < 0.15 < unsure.high


def test_gain_of_a_personal_prompt_is_bounded_however_it_is_spread():
    first, second = 1 / math.sqrt(math.pi), 3 / (2 * math.sqrt(math.pi))
    assert personal_gain(0.01, (2, 3)) == pytest.approx(math.hypot(first, second) * 0.1)
    for part in (0.0, 0.3, 1.0):
        reached = first * math.sqrt(0.01 * part) + second * math.sqrt(0.01 * (1 - part))
        assert reached <= personal_gain(0.01, (2, 3))
    assert personal_gain(-0.01, (2, 3)) == 0


def test_calls_to_find_by_hand():
    """Of one pattern the share sqrt(v / (v + noise / groups)) is found."""
    found = groups_to_find(np.array([0.01]), np.array([0.04]), (5,), 0.8)
    assert found == pytest.approx(4 * 0.64 / 0.36)
    assert groups_to_find(np.array([0.01]), np.array([1e-6]), (5,), 0.8) == 1
    assert groups_to_find(np.array([-0.01]), np.array([0.04]), (5,), 0.8) is None
    more = groups_to_find(np.array([0.01, 0.001]), np.array([0.04, 0.04]), (5, 3), 0.8)
    assert more > found


def test_what_lasts_is_spread_in_proportion():
    assert spread(0.4, np.array([0.3, -0.1, 0.1])) == pytest.approx([0.3, 0, 0.1])
    assert spread(0.4, np.array([-0.3, -0.1])) == pytest.approx([0.2, 0.2])
    assert spread(-0.4, np.array([0.3, 0.1])) == pytest.approx([0, 0])


def test_findings_of_a_planted_world():
    rewards, actions, main = world(3, lasting=0.1)
    found = find(rewards, actions, OPTIONS)
    assert found.n_rewards == 60 * 2 * 16
    assert found.lasting.low <= 0.1 <= found.lasting.high
    assert found.lasting.low > 0.05
    share = 0.01 / (0.01 + 0.112**2 + 0.047**2)
    assert found.lasting_share.low <= share <= found.lasting_share.high
    assert found.targets.low <= 0.27 <= found.targets.high
    assert found.users.low == 0
    assert found.rest.low <= 0.047 <= found.rest.high
    assert found.common.low <= sum(each.max() for each in main) <= found.common.high
    assert found.patterns["history"].within.mean > 2 * found.patterns["role"].within.mean
    assert found.calls.personal >= found.calls.personal_at_best


def test_rewards_of_users_with_one_answered_target_tell_nothing():
    rewards, actions, _ = world(0, n_users=5)
    rewards[3:, 1] = np.nan
    assert find(rewards, actions, OPTIONS).n_users == 3
    rewards[2, 0] = np.nan
    with pytest.raises(InputError, match="2 users have rewards on two targets"):
        find(rewards, actions, OPTIONS)
