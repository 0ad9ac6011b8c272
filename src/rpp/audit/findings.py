"""What an audit finds: all its figures, from rewards and the options that were drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rpp.audit.gains import common_gain, groups_to_find, main_effects_variance, personal_gain
from rpp.metrics import Interval
from rpp.types import InputError
from rpp.variance import Components, Sums, components, covariance, jackknife, sums, with_interval

Array = np.ndarray

MIN_USERS = 3
"""Fewest users from whom an interval can be had."""

COMMON_SHARE, PERSONAL_SHARE = 0.8, 0.5
"""Shares of what can be won for which calls are counted."""


@dataclass(frozen=True)
class PatternFinding:
    """One pattern; standard deviations are over its options.

    Attributes:
        effects: Reward of each option less the mean over options.
        main: Standard deviation of these effects.
        within: Of what options do beyond it for one user on one target.
        lasting: Of the part of it that is the same on the user's other targets.
    """

    effects: tuple[Interval, ...]
    main: Interval
    within: Interval
    lasting: Interval


@dataclass(frozen=True)
class Calls:
    """About how many calls it takes to find what can be won; ``None``: there is nothing to find.

    Attributes:
        common: For :data:`COMMON_SHARE` of the gain of a common prompt.
        personal: For :data:`PERSONAL_SHARE` of that of a personal one, of each user.
        personal_at_best: Likewise, if the upper end of what lasts is true.
    """

    common: int | None
    personal: int | None
    personal_at_best: int | None


@dataclass(frozen=True)
class Findings:
    """Standard deviations and gains in units of the reward, with 95 % intervals.

    Attributes:
        n_users: Users with rewards.
        n_targets: Targets of each.
        n_prompts: Prompts of each user and target.
        n_rewards: Rewards there are.
        users: Standard deviation of the mean reward between users.
        targets: Likewise between the targets of one user.
        patterns: By name.
        rest: Standard deviation between prompts within one user and target that no single pattern
            accounts for.
        within: Of all that prompts do beyond main effects, for one user on one target.
        lasting: Of the part of it that is the same on the user's other targets.
        lasting_share: The share of that variance which lasts.
        common: Gain of the best common prompt over a random one.
        personal: Most that the best prompt of every user gains over the best common one.
        calls: What it takes to find them.
    """

    n_users: int
    n_targets: int
    n_prompts: int
    n_rewards: int
    users: Interval
    targets: Interval
    patterns: Mapping[str, PatternFinding]
    rest: Interval
    within: Interval
    lasting: Interval
    lasting_share: Interval
    common: Interval
    personal: Interval
    calls: Calls


@dataclass(frozen=True)
class _Evidence:
    """The estimates, the same without each user, and the estimates' covariances by pattern."""

    groups: Sums
    whole: Components
    without: Components

    @property
    def effects(self) -> list[Array]:
        """Main effects by pattern."""
        return np.split(self.whole.effects, np.cumsum(self.groups.n_options)[:-1])

    @property
    def covariances(self) -> list[Array]:
        """Of the main effects, by pattern."""
        ends = np.cumsum(self.groups.n_options)[:-1]
        return [covariance(each) for each in np.split(self.without.effects, ends, 1)]

    @property
    def n_groups(self) -> int:
        """Users times targets."""
        return self.groups.counts.size

    @property
    def n_prompts(self) -> int:
        """Prompts of each user and target."""
        return int(self.groups.counts.max())


def find(rewards: Array, actions: Array, patterns: Mapping[str, int]) -> Findings:
    """All figures.

    Args:
        rewards: ``(U, T, n)``; ``nan`` where there is none.
        actions: Options of every prompt, ``(U, T, n, P)``.
        patterns: Names of the patterns and their numbers of options, ``P``.

    Raises:
        InputError: If there are too few users for intervals.
    """
    answered = ((~np.isnan(rewards)).sum(2) > 1).sum(1) > 1
    if (n_users := int(answered.sum())) < MIN_USERS:
        raise InputError(
            f"{n_users} users have rewards on two targets, too few for an audit: ask at least"
            f" {MIN_USERS}"
        )
    groups = sums(rewards[answered], actions[answered], [*patterns.values()])
    return _findings(_Evidence(groups, components(groups), jackknife(groups)), [*patterns])


def _findings(found: _Evidence, names: Sequence[str]) -> Findings:
    groups, whole, without = found.groups, found.whole, found.without
    lasting = with_interval(whole.lasting.sum(), without.lasting.sum(1))
    n_users, n_targets = groups.counts.shape
    return Findings(
        n_users,
        n_targets,
        found.n_prompts,
        int(groups.counts.sum()),
        _deviation(whole.levels[0], without.levels[:, 0]),
        _deviation(whole.levels[1], without.levels[:, 1]),
        dict(zip(names, _by_pattern(found), strict=True)),
        _deviation(whole.within[-1], without.within[:, -1]),
        _deviation(whole.within.sum(), without.within.sum(1)),
        _root(lasting),
        _share(found),
        common_gain(found.effects, found.covariances),
        Interval(*(personal_gain(each, groups.n_options) for each in lasting)),
        _calls(found, lasting),
    )


def _by_pattern(found: _Evidence) -> list[PatternFinding]:
    whole, without = found.whole, found.without
    each_without = np.split(without.effects, np.cumsum(found.groups.n_options)[:-1], 1)
    return [
        PatternFinding(
            tuple(map(with_interval, effects, each_without[k].T)),
            _root(main_effects_variance(effects, spread)),
            _deviation(whole.within[k], without.within[:, k]),
            _deviation(whole.lasting[k], without.lasting[:, k]),
        )
        for k, (effects, spread) in enumerate(zip(found.effects, found.covariances, strict=True))
    ]


def _share(found: _Evidence) -> Interval:
    """Lasting part of the variance, from 0 to 1."""
    whole, without = found.whole, found.without
    if not whole.within.sum() > 0:
        return Interval(0.0, 0.0, 0.0)
    share = without.lasting.sum(1) / without.within.sum(1)
    ends = with_interval(whole.lasting.sum() / whole.within.sum(), share)
    return Interval(*(min(max(each, 0.0), 1.0) for each in ends))


def _calls(found: _Evidence, lasting: Interval) -> Calls:
    pairs = [*zip(found.effects, found.covariances, strict=True)]
    variances = np.array([main_effects_variance(*each).mean for each in pairs])
    noise = np.array([np.trace(each) / (len(each) - 1) for each in found.covariances])
    n_options = found.groups.n_options
    groups = [
        groups_to_find(variances, noise * found.n_groups, n_options, COMMON_SHARE),
        *(_personal_groups(found, each) for each in (lasting.mean, lasting.high)),
    ]
    return Calls(*(None if each is None else round(each * found.n_prompts) for each in groups))


def _personal_groups(found: _Evidence, lasting: float) -> float | None:
    """Groups of one user that tell the user's own best prompt."""
    whole, n_options = found.whole, found.groups.n_options
    variances = spread(lasting, whole.lasting)
    luck = np.maximum(whole.within[:-1] - variances, 0)
    rest = max(float(whole.within[-1]), 0) * np.array(n_options) / found.n_prompts
    return groups_to_find(variances, luck + rest, n_options, PERSONAL_SHARE)


def spread(total: float, estimates: Array) -> Array:
    """A sum of variances divided in proportion to estimates, of which negative ones count 0."""
    parts = np.maximum(estimates, 0)
    parts = parts / parts.sum() if parts.any() else np.full(len(parts), 1 / len(parts))
    return parts * max(total, 0)


def _deviation(variance: float, without: Array) -> Interval:
    """Standard deviation from a variance and its values without each user."""
    return _root(with_interval(variance, without))


def _root(variance: Interval) -> Interval:
    """Standard deviation; a negative estimate of a variance is 0."""
    return Interval(*(float(np.sqrt(max(each, 0.0))) for each in variance))
