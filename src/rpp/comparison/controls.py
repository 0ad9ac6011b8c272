"""Rankers without skill, measured before any method: they must score chance.

Each goes the way of every prompt method, and a recommender that knows nothing the way of every
recommender. A score that is not chance means that the order of the candidates, the parser or the
tie-breaking knows the target, and then no figure of the table would mean anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor

from rpp.baselines.base import rank
from rpp.comparison.base import Task
from rpp.comparison.static import RandomPolicy
from rpp.llms.controls import Behaviour, ControlLanguageModel
from rpp.metrics import METRICS, chance, chance_interval, target_ranks
from rpp.ranker import Ranker
from rpp.types import Episode, final_scoring

CHECKED = ("ndcg@1", "ndcg@5", "ndcg@10")

FALSE_ALARM = 1e-3
"""Probability that any of the controls of a sound comparison leaves its interval."""


def control_ranks(task: Task, episodes: Sequence[Episode]) -> dict[str, Tensor]:
    """Ranks of the targets by every control, ``(B,)`` each.

    The only place that looks at test targets before the methods have chosen; all that comes of
    it is whether there will be a table.
    """
    rankings = {
        "knows nothing": rank(torch.zeros(len(episodes), _n_candidates(episodes)), episodes)
    }
    for behaviour in get_args(Behaviour):
        ranker = Ranker(ControlLanguageModel(behaviour), "generate")
        rankings[behaviour] = RandomPolicy().learn(replace(task, ranker=ranker))(episodes)
    with final_scoring():
        return {name: target_ranks(each, episodes) for name, each in rankings.items()}


def suspicious(ranks: dict[str, Tensor], n_candidates: int) -> list[str]:
    """What is wrong with which control, in sentences; empty if all score chance.

    Args:
        ranks: Ranks by control.
        n_candidates: ``M``.
    """
    confidence = 1 - FALSE_ALARM / (len(ranks) * len(CHECKED))
    found = []
    for control, values in ranks.items():
        for name in CHECKED:
            low, high = chance_interval(name, n_candidates, len(values), confidence)
            score = float(METRICS[name](values).mean())
            if not low <= score <= high:
                found.append(
                    f"{control} scores {name} {score:.3f}, and chance is"
                    f" {chance(name, n_candidates):.3f} [{low:.3f}, {high:.3f}]"
                )
    return found


def _n_candidates(episodes: Sequence[Episode]) -> int:
    return len(episodes[0].candidates)
