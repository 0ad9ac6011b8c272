"""Ranking metrics, one value per user, and their bootstrap intervals (paper, section 4.1).

Every episode has one relevant candidate, so each metric is a function of the target's rank only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import binom, bootstrap, norm, permutation_test
from torch import Tensor

from rpp.types import Episode, Ranking


def target_ranks(
    rankings: Sequence[Ranking], episodes: Sequence[Episode], *, named_only: bool = False
) -> Tensor:
    """Rank of every user's target, from 1.

    Args:
        rankings: One per episode, in the same order.
        episodes: ``B`` episodes; for test episodes call this within ``final_scoring()``.
        named_only: Count a target that the reply did not name as not retrieved.

    Returns:
        Shape ``(B,)``; ``inf`` where the target was not retrieved, ``nan`` where the language
        model failed: a lost connection is not a bad ranking.

    Raises:
        ValueError: If the numbers of rankings and episodes differ.
    """
    ranks = [
        _rank(ranking, episode, named_only)
        for ranking, episode in zip(rankings, episodes, strict=True)
    ]
    return torch.tensor(ranks, dtype=torch.float64)


def _rank(ranking: Ranking, episode: Episode, named_only: bool) -> float:
    if ranking.failed:
        return float("nan")
    rank = ranking.order.index(episode.target) + 1
    return float("inf") if named_only and rank > ranking.n_named else float(rank)


def ndcg(ranks: Tensor, k: int) -> Tensor:
    r"""Normalised discounted cumulative gain; the reward is NDCG@M (paper Eq. 6).

    .. math:: \mathrm{NDCG@}k = [q \le k] / \log_2(q + 1)

    Args:
        ranks: Rank :math:`q` of each target, from 1; any shape; ``nan`` stays ``nan``.
        k: Cut-off rank.
    """
    return _within(ranks, k, 1 / torch.log2(ranks + 1))


def mrr(ranks: Tensor, k: int) -> Tensor:
    r"""Reciprocal rank, :math:`[q \le k] / q`."""
    return _within(ranks, k, 1 / ranks)


def hit_rate(ranks: Tensor, k: int) -> Tensor:
    r"""Whether the target is among the first ``k``, :math:`[q \le k]`."""
    return _within(ranks, k, torch.ones_like(ranks))


def _within(ranks: Tensor, k: int, gain: Tensor) -> Tensor:
    gain = torch.where(ranks <= k, gain, torch.zeros_like(gain))
    return torch.where(ranks.isnan(), ranks, gain)


METRICS = {
    "ndcg@1": lambda ranks: ndcg(ranks, 1),
    "ndcg@5": lambda ranks: ndcg(ranks, 5),
    "ndcg@10": lambda ranks: ndcg(ranks, 10),
    "mrr@5": lambda ranks: mrr(ranks, 5),
    "mrr@10": lambda ranks: mrr(ranks, 10),
    "hr@5": lambda ranks: hit_rate(ranks, 5),
}
"""The columns of every results table: name to a function of ``ranks``."""


CHANCE = "chance"
"""Name of the row with the expected scores of a random ranking."""


def chance(name: str, n_candidates: int) -> float:
    """Expected value of a metric when the target's rank is uniform on ``1..n_candidates``."""
    every_rank = torch.arange(1, n_candidates + 1, dtype=torch.float64)
    return float(METRICS[name](every_rank).mean())


def chance_interval(
    name: str, n_candidates: int, n_users: int, confidence: float
) -> tuple[float, float]:
    r"""Interval of the mean over users if every target's rank is uniform on ``1..n_candidates``.

    .. math:: \mu \pm z \sigma / \sqrt{n}

    with the exact mean and standard deviation of the metric over all ranks; for a metric that is
    either 0 or 1 the exact binomial interval.

    Args:
        name: Name of a metric.
        n_candidates: ``M``.
        n_users: :math:`n`.
        confidence: Probability mass of the interval, two-sided.
    """
    values = METRICS[name](torch.arange(1, n_candidates + 1, dtype=torch.float64))
    if set(values.tolist()) <= {0.0, 1.0}:
        low, high = binom.interval(confidence, n_users, float(values.mean()))
        return float(low) / n_users, float(high) / n_users
    spread = float(values.std(correction=0)) / n_users**0.5
    low, high = norm.interval(confidence, loc=float(values.mean()), scale=spread)
    return float(low), float(high)


RESAMPLES_AT_ONCE = 250
"""Bootstrap resamples held in memory at once; each has one number per user."""


class Interval(NamedTuple):
    """A mean over users with the ends of its confidence interval."""

    mean: float
    low: float
    high: float


def chance_row(n_candidates: int) -> dict[str, Interval]:
    """The exact expected scores of chance, in the form of a table row."""
    return {name: Interval(*[chance(name, n_candidates)] * 3) for name in METRICS}


def mean_interval(
    values: Tensor | np.ndarray, *, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Mean over users and its percentile-bootstrap interval.

    Args:
        values: One value per user, shape ``(B,)``; ``nan`` (failed calls) is left out.
        confidence: Probability mass of the interval.
        seed: Seed of the resampling.
    """
    sample = np.asarray(values, dtype=np.float64)
    sample = sample[~np.isnan(sample)]
    if sample.size == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    mean = float(sample.mean())
    if sample.size == 1 or np.ptp(sample) == 0:
        return Interval(mean, mean, mean)
    result = bootstrap(
        (sample,), np.mean, confidence_level=confidence, method="percentile",
        n_resamples=5000, batch=RESAMPLES_AT_ONCE, rng=np.random.default_rng(seed),
    )  # fmt: skip
    low, high = result.confidence_interval
    return Interval(mean, float(low), float(high))


def paired_difference(ours: Tensor, theirs: Tensor, *, seed: int = 0) -> Interval:
    """Mean over users of ``ours - theirs`` with its 95 % bootstrap interval; shapes ``(B,)``."""
    return mean_interval(ours - theirs, seed=seed)


def paired_p_value(ours: Tensor, theirs: Tensor, *, seed: int = 0) -> float:
    """Two-sided p-value of a paired sign-flip permutation test.

    Args:
        ours: One value per user, shape ``(B,)``; users with ``nan`` on either side are left out.
        theirs: Likewise, of the same users.
        seed: Of the resampling.

    Returns:
        1 if no user differs, or if there is only one user: both signs are equally extreme.
    """
    difference = (ours - theirs).numpy()
    difference = difference[np.isfinite(difference)]
    if len(difference) < 2 or not difference.any():
        return 1.0
    test = permutation_test(
        (difference,), np.mean, permutation_type="samples", n_resamples=9999,
        batch=RESAMPLES_AT_ONCE, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(test.pvalue)
