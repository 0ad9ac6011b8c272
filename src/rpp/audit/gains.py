r"""What a common and a personal prompt can win, and about how many calls it takes to find them.

Where options differ by normal effects of variance :math:`v`, the best of :math:`n` is
:math:`c_n \sqrt v` above their mean, :math:`c_n` being the expected largest of :math:`n` standard
normal numbers. Chosen by estimates with the noise :math:`\sigma^2` it is
:math:`c_n v / \sqrt{v + \sigma^2}` above.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import chndtr, chndtrinc
from scipy.stats import Normal, chi2, order_statistic

from rpp.metrics import Interval

Array = np.ndarray

MOST_GROUPS = 1e9
"""Beyond so many groups nothing is found."""

TINY = float(np.finfo(float).tiny)
"""In the place of a noise of 0, by which is divided."""

N_DRAWS = 4000
"""Simulated prompts for the gain of the best common one."""


def expected_largest(n_options: Sequence[int]) -> Array:
    """:math:`c_n`, the mean of the largest of ``n`` standard normal numbers, for every pattern."""
    return np.array([_expected_largest(n) for n in n_options])


@cache
def _expected_largest(n: int) -> float:
    return float(order_statistic(Normal(), r=n, n=n).mean())


def main_effects_variance(effects: Array, covariance: Array) -> Interval:
    r"""Variance of the main effects of one pattern, less that of their estimates' noise.

    The sum of squares of the estimates, over their noise, is noncentral :math:`\chi^2`; the
    interval holds the variances for which it is neither too large nor too small.

    Args:
        effects: Estimated effects of the options, less their mean, ``(n,)``.
        covariance: Of these estimates, ``(n, n)``.

    Returns:
        The estimate and the ends of its 95 % interval.
    """
    df = len(effects) - 1
    noise = float(np.trace(covariance)) / df
    squares = float(effects @ effects)
    if noise <= 0:
        return Interval(*[squares / df] * 3)
    ends = (_noncentrality(squares / noise, df, tail) * noise / df for tail in (0.975, 0.025))
    return Interval(squares / df - noise, *ends)


def _noncentrality(value: float, df: int, tail: float) -> float:
    """The noncentrality at which a value has this probability of not being exceeded."""
    return float(chndtrinc(value, df, tail)) if chndtr(value, df, 0) > tail else 0.0


def common_gain(effects: Sequence[Array], covariances: Sequence[Array]) -> Interval:
    r"""Gain of the best common prompt over a random one.

    The best of several estimates is too high. The mean is that of normal effects with the estimated
    variances, given the estimates; the ends allow for every variance that suits the estimates. The
    lower end is 0 unless a :math:`\chi^2` test shows that common prompts differ.

    Args:
        effects: Estimated effects by pattern and option, less each pattern's mean.
        covariances: Of these estimates.
    """
    rng = np.random.default_rng(0)
    likely, possible = np.zeros((2, N_DRAWS))
    statistic = 0.0
    for each, covariance in zip(effects, covariances, strict=True):
        noise = float(np.trace(covariance)) / (len(each) - 1)
        variance = max(main_effects_variance(each, covariance).mean, 0)
        likely += _draw_largest(each, noise, np.full(N_DRAWS, variance), rng)
        possible += _draw_largest(each, noise, _draw_variances(each, noise, rng), rng)
        statistic += float(each @ each) / max(noise, TINY)
    differ = chi2.sf(statistic, sum(len(each) - 1 for each in effects)) < 0.025
    mean, ends = float(likely.mean()), np.quantile(possible, (0.025, 0.975))
    return Interval(mean, min(float(ends[0]), mean) if differ else 0.0, max(float(ends[1]), mean))


def _draw_variances(effects: Array, noise: float, rng: np.random.Generator) -> Array:
    """Variances of normal effects given their estimates, a priori uniform in their root."""
    df, squares = len(effects) - 1, float(effects @ effects)
    deviations = np.linspace(0, 4 * np.sqrt(max(squares / df, noise)), 400)
    total = np.maximum(deviations**2 + noise, TINY)
    likelihood = -(df * np.log(total) + squares / total) / 2
    weights = np.exp(likelihood - likelihood.max())
    return rng.choice(deviations, N_DRAWS, p=weights / weights.sum()) ** 2


def _draw_largest(
    effects: Array, noise: float, variances: Array, rng: np.random.Generator
) -> Array:
    """Largest of normal effects given their estimates, for every variance."""
    kept = (variances / np.maximum(variances + noise, TINY))[:, None]
    errors = rng.normal(size=(len(variances), len(effects)))
    errors -= errors.mean(1, keepdims=True)
    drawn: Array = (kept * effects + np.sqrt(kept * noise) * errors).max(1)
    return drawn


def personal_gain(lasting: float, n_options: Sequence[int]) -> float:
    r"""Most that the best prompt of every user can gain over the best common one.

    Each pattern gains :math:`c_n \sqrt{s_k}` at most, and by Cauchy and Schwarz all together no
    more than :math:`\sqrt{\sum_k c_n^2} \sqrt{\sum_k s_k}`, however what lasts is spread over them.

    Args:
        lasting: Sum of the lasting variances.
        n_options: Number of options of each pattern.
    """
    return float(np.sqrt((expected_largest(n_options) ** 2).sum() * max(lasting, 0)))


def groups_to_find(
    variances: Array, noise: Array, n_options: Sequence[int], share: float
) -> float | None:
    """Groups of rewards after which a share of the gain of the best options is found.

    Args:
        variances: Of the effects, by pattern, ``(P,)``.
        noise: Of their estimates from one group, ``(P,)``.
        n_options: Number of options of each pattern.
        share: Between 0 and 1.

    Returns:
        At least one; ``None`` where there is nothing to find.
    """
    largest = expected_largest(n_options)
    variances = np.maximum(variances, 0)
    wanted = share * float(largest @ np.sqrt(variances))
    present = variances > 0

    def missing(log_groups: float) -> float:
        spread = variances + noise / np.exp(log_groups)
        return wanted - float((largest * variances)[present] @ spread[present] ** -0.5)

    if not present.any() or missing(np.log(MOST_GROUPS)) > 0:
        return None
    return float(np.exp(brentq(missing, 0, np.log(MOST_GROUPS)))) if missing(0) > 0 else 1.0
