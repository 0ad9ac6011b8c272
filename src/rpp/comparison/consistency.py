"""Permutation self-consistency: several candidate orders, one ranking nearest to all answers.

Tang et al., "Found in the Middle: Permutation Self-Consistency Improves Listwise Ranking in Large
Language Models", NAACL 2024. It spends on shuffled lists the calls that RPP spends on prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from rpp.comparison.base import PromptMethod, Ranks, Task
from rpp.data.datamodule import shuffle_candidates
from rpp.prompts.static import only_prompt
from rpp.types import Episode, InputError, Ranking, arbitrary_order, failed_ranking, status_of


class SelfConsistency(PromptMethod):
    """The manual prompt with the candidates in several orders, the rankings aggregated.

    Orders only matter where the list is shown: a ranker that does not show it shows it here.

    Args:
        n_orders: Orders of every user, the displayed one and random ones; ``null``: as many as
            an RPP episode has steps.
    """

    name = "self-consistency"

    def __init__(self, n_orders: int | None = None) -> None:
        if n_orders is not None and n_orders < 1:
            raise InputError(f"self-consistency over {n_orders} orders: ask for at least 1")
        self.n_orders = n_orders

    def learn(self, task: Task) -> Ranks:
        """There is nothing to learn.

        Raises:
            InputError: If the patterns file has no manual prompt.
        """
        listing = replace(task, ranker=task.ranker.with_list()).manual
        n_orders = self.n_orders or task.n_steps

        def ranks(episodes: Sequence[Episode]) -> list[Ranking]:
            shown = list(episodes)
            for number in range(1, n_orders):
                shown += shuffle_candidates(episodes, task.seed, number)
            rankings = listing.step_static(shown, [only_prompt(listing.patterns)]).rankings
            # by order, then by user
            return [
                aggregate(episode, shown[k :: len(episodes)], rankings[k :: len(episodes)],
                          task.ranker.seed)
                for k, episode in enumerate(episodes)
            ]  # fmt: skip

        return ranks

    def max_calls(self, task: Task, n_users: int) -> int:
        """Every order of every user."""
        return (self.n_orders or task.n_steps) * n_users


def aggregate(
    episode: Episode, shown: Sequence[Episode], rankings: Sequence[Ranking], seed: int
) -> Ranking:
    """The Kemeny-optimal ranking of several answers for one user.

    Candidates that no reply named come last: every other one is preferred to them. Of equally
    good rankings the one taken knows neither the target nor an order that was displayed.

    Args:
        episode: The user, whose candidates the result counts.
        shown: The same with the candidates in the order of each answer.
        rankings: The answers, ``R``; failed ones are left out.
        seed: Of what decides between equally good rankings.

    Returns:
        A complete ranking; a failed one if all failed.
    """
    place = {item.index: k for k, item in enumerate(episode.candidates)}
    answers = [
        ([place[other.candidates[k].index] for k in ranking.order], ranking.n_named)
        for other, ranking in zip(shown, rankings, strict=True)
        if not ranking.failed
    ]
    if not answers:
        return failed_ranking(rankings[0].reply)
    order = np.array(arbitrary_order(episode, seed))
    counts = preferences(answers, len(order))[np.ix_(order, order)]
    n_named = len({k for positions, named in answers for k in positions[:named]})
    return Ranking(
        tuple(int(k) for k in order[kemeny(counts)]),
        n_named,
        status_of(n_named, len(order)),
        "\n\n".join(ranking.reply for ranking in rankings if not ranking.failed),
    )


def preferences(answers: Sequence[tuple[Sequence[int], int]], n: int) -> NDArray[np.int64]:
    """How many answers prefer one candidate to another, shape ``(M, M)``, row to column.

    A reply prefers what it names to what it names later or not at all; of two that it does not
    name it prefers none.

    Args:
        answers: Positions of all ``M`` candidates, best first, and how many of them are named.
        n: ``M``.
    """
    counts = np.zeros((n, n), dtype=np.int64)
    for positions, n_named in answers:
        for rank, better in enumerate(positions[:n_named]):
            counts[better, list(positions[rank + 1 :])] += 1
    return counts


def kemeny(counts: NDArray[np.int64]) -> list[int]:
    r"""The order that contradicts fewest preferences (Kemeny 1959), exactly.

    .. math:: \min_\pi \sum_{i \text{ before } j \text{ in } \pi} c_{ji}

    For complete rankings this is the least sum of Kendall's tau distances to them. As a linear
    ordering problem: one binary variable for every pair, and no three of them make a circle. It
    is only solved where majorities do make circles; otherwise they are the order.

    Args:
        counts: :math:`c`, how many prefer the row to the column; shape ``(M, M)``.

    Returns:
        Numbers of the rows, best first.
    """
    n = len(counts)
    by_majorities = _most_first((counts > counts.T).sum(axis=1))
    against = counts[np.ix_(by_majorities, by_majorities)]
    first, second = np.triu_indices(n, k=1)
    if (against[second, first] <= against[first, second]).all():
        return by_majorities  # no pair could do better
    solution = milp(
        counts[second, first] - counts[first, second],  # cost of "the first before the second"
        integrality=np.ones(len(first)),
        bounds=Bounds(0, 1),
        constraints=_no_circles(n),
        options={"mip_rel_gap": 0},
    )
    if solution.x is None:
        raise RuntimeError(f"no order of {n} candidates was found: {solution.message}")
    before = np.zeros((n, n))
    before[first, second] = solution.x.round()
    before[second, first] = 1 - before[first, second]
    return _most_first(before.sum(axis=1))


def _most_first(values: NDArray[Any]) -> list[int]:
    return [int(k) for k in np.argsort(-values, kind="stable")]


@lru_cache(maxsize=8)
def _no_circles(n: int) -> LinearConstraint:
    r""":math:`0 \le x_{ij} + x_{jk} - x_{ik} \le 1` for all :math:`i < j < k`."""
    number = {pair: k for k, pair in enumerate(combinations(range(n), 2))}
    triples = list(combinations(range(n), 3))
    columns = [number[pair] for i, j, k in triples for pair in ((i, j), (j, k), (i, k))]
    rows = np.repeat(np.arange(len(triples)), 3)
    signs = np.tile([1, 1, -1], len(triples))
    return LinearConstraint(csr_array((signs, (rows, columns))), 0, 1)
