r"""Variance components of rewards: what a prompt changes, and how much of it lasts within a user.

The reward of a user :math:`u` on a target :math:`\tau` under a prompt with the options
:math:`a_1 \dots a_P` is

.. math:: r = \mu_{u\tau} + \sum_k m_k[a_k] + \sum_k b_{uk}[a_k] + \sum_k c_{u\tau k}[a_k] + e

with main effects :math:`m`, personal effects :math:`b` that last from one target to the next, and
:math:`c, e` that do not. Variances are estimated by moments (Haseman and Elston 1972; MINQUE, Rao
1970): products of two rewards of one user have an expectation that is linear in the variances.
Every estimate is a function of the sums of a group, a group being one user on one target; intervals
come from the jackknife over users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.linalg import block_diag, helmert
from scipy.stats import t as student

from rpp.metrics import Interval

Array = np.ndarray

RIDGE = 1e-9
"""Added to a Gram matrix, so that an option that was never drawn has the effect 0."""


@dataclass(frozen=True)
class Sums:
    r"""Sums of the groups of ``U`` users and ``T`` targets, from which all estimates are made.

    Attributes:
        n_options: Number of options of each pattern.
        grams: :math:`Z^\top Z` of the centred contrasts of the options, ``(U, T, D, D)``; ``D`` is
            the sum of the numbers of options less one.
        moments: :math:`Z^\top r`, ``(U, T, D)``.
        squares: Sum of squares of the centred rewards, ``(U, T)``.
        means: Mean reward, ``(U, T)``; ``nan`` without any.
        counts: Number of rewards, ``(U, T)``.
    """

    n_options: tuple[int, ...]
    grams: Array
    moments: Array
    squares: Array
    means: Array
    counts: Array

    def without(self, user: int) -> Sums:
        """The same without one user."""
        kept = np.arange(len(self.counts)) != user
        return Sums(
            self.n_options, self.grams[kept], self.moments[kept], self.squares[kept],
            self.means[kept], self.counts[kept],
        )  # fmt: skip

    @property
    def starts(self) -> list[int]:
        """Where each pattern's contrasts begin."""
        return [sum(n - 1 for n in self.n_options[:k]) for k in range(len(self.n_options))]


class Components(NamedTuple):
    """Estimates; variances are over the options of a pattern, and negative ones are not cut.

    Attributes:
        effects: Main effects by pattern and option, less each pattern's mean.
        lasting: Variance of the personal effects that last, by pattern, ``(P,)``.
        within: Variance of all personal effects within one user and target, by pattern, then that
            of the rest, which is no sum over patterns, ``(P + 1,)``.
        levels: Variance of the mean reward between users and between the targets of one user.
    """

    effects: Array
    lasting: Array
    within: Array
    levels: Array


def contrasts(n_options: Sequence[int]) -> Array:
    """Orthonormal contrasts between each pattern's options, ``(sum of options, D)``."""
    return np.asarray(block_diag(*(helmert(n).T for n in n_options)))


def sums(rewards: Array, actions: Array, n_options: Sequence[int]) -> Sums:
    """Sums of every group.

    Args:
        rewards: ``(U, T, n)``; ``nan`` where there is none.
        actions: Options of every prompt, ``(U, T, n, P)``.
        n_options: Number of options of each pattern, ``P``.
    """
    known = ~np.isnan(rewards)
    counts = known.sum(-1)
    chosen = [np.eye(n)[actions[..., k]] for k, n in enumerate(n_options)]
    design = np.concatenate(chosen, -1) @ contrasts(n_options)
    centred = _centred(design, known[..., None], -2)
    deviations = _centred(rewards, known, -1)
    return Sums(
        tuple(n_options),
        np.einsum("utnd,utne->utde", centred, centred),
        np.einsum("utnd,utn->utd", centred, deviations),
        (deviations**2).sum(-1),
        np.where(counts, np.where(known, rewards, 0).sum(-1), np.nan) / np.maximum(counts, 1),
        counts,
    )


def _centred(values: Array, known: Array, axis: int) -> Array:
    """Less the mean of what is known; 0 elsewhere."""
    means = np.where(known, values, 0).sum(axis, keepdims=True)
    means /= np.maximum(known.sum(axis, keepdims=True), 1)
    return np.where(known, values - means, 0)


def components(groups: Sums) -> Components:
    """All estimates."""
    grams, moments = groups.grams.sum(1), groups.moments.sum(1)
    mean_contrasts = _solve(grams.sum(0), moments.sum(0))
    others = _solve(grams.sum(0) - grams, moments.sum(0) - moments)  # (U, D)
    fitted = np.einsum("utde,ue->utd", groups.grams, others)
    residuals = groups.moments - fitted
    return Components(
        contrasts(groups.n_options) @ mean_contrasts,
        _lasting(groups, residuals),
        _within(groups, residuals, others),
        _levels(groups),
    )


def _solve(grams: Array, moments: Array) -> Array:
    """Least squares, also of many at once."""
    ridge = RIDGE * np.eye(grams.shape[-1])
    return np.linalg.solve(grams + ridge, moments[..., None])[..., 0]


def _lasting(groups: Sums, residuals: Array) -> Array:
    r"""Products of rewards on two targets of one user, :math:`s = A^{-1} b`.

    From one of the two rewards the main effects are taken that the *other* users show. Their error
    is independent of this user, so the product keeps its expectation.
    """
    normal, products = np.zeros(groups.grams.shape[2:]), np.zeros(groups.moments.shape[2])
    for one, other in combinations(range(groups.counts.shape[1]), 2):
        normal = normal + (groups.grams[:, one] * groups.grams[:, other]).sum(0)
        products = products + (residuals[:, one] * groups.moments[:, other]).sum(0) / 2
        products = products + (residuals[:, other] * groups.moments[:, one]).sum(0) / 2
    by_pattern = np.add.reduceat(products, groups.starts)
    return np.asarray(np.linalg.lstsq(_blocks(normal, groups), by_pattern)[0])


def _within(groups: Sums, residuals: Array, others: Array) -> Array:
    """Products of rewards of one user on one target; the rest is the part on the diagonal."""
    by_pattern = _blocks((groups.grams**2).sum((0, 1)), groups)
    traces = np.einsum("utdd->d", groups.grams)
    traces = np.add.reduceat(traces, groups.starts)
    n = np.maximum(groups.counts - 1, 0).sum()
    normal = np.block([[by_pattern, traces[:, None]], [traces[None], np.array([[n]])]])
    products = np.add.reduceat((residuals * groups.moments).sum((0, 1)), groups.starts)
    rest = groups.squares.sum() - np.einsum("utd,ud->", groups.moments, others)
    return np.asarray(np.linalg.lstsq(normal, np.append(products, rest))[0])


def _blocks(matrix: Array, groups: Sums) -> Array:
    """Sums over the contrasts of each pair of patterns, ``(P, P)``."""
    rows = np.add.reduceat(matrix, groups.starts, 0)
    return np.add.reduceat(rows, groups.starts, 1)


def _levels(groups: Sums) -> Array:
    """One-way analysis of variance of the groups' means, the noise of a mean taken out."""
    known = groups.counts > 0
    noise = (groups.squares / np.maximum(groups.counts - 1, 1))[known] / groups.counts[known]
    n_targets = known.sum(1)
    targets = (_centred(groups.means, known, 1) ** 2).sum() / np.maximum(n_targets - 1, 0).sum()
    asked = n_targets > 0
    means = np.where(known, groups.means, 0).sum(1)[asked] / n_targets[asked]
    users = means.var(ddof=1) - targets * (1 / n_targets[asked]).mean()
    return np.array([users, targets - noise.mean()])


def jackknife(groups: Sums) -> Components:
    """The estimates without each user in turn, one after the other along the first axis."""
    each = [components(groups.without(user)) for user in range(len(groups.counts))]
    return Components(*map(np.stack, zip(*each, strict=True)))


def covariance(without: Array) -> Array:
    """Jackknife covariance of estimates from their values without each user, ``(U, N)``."""
    n = len(without)
    deviations = without - without.mean(0)
    return np.asarray((n - 1) / n * deviations.T @ deviations)


def with_interval(value: float, without: Array) -> Interval:
    """An estimate with its 95 % interval, from its values without each user, ``(U,)``."""
    spread = float(np.sqrt(covariance(without[:, None])[0, 0]))
    reach = float(student.ppf(0.975, len(without) - 1)) * spread
    return Interval(float(value), float(value) - reach, float(value) + reach)
