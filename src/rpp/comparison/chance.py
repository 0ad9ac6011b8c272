"""Rankers without skill, measured before any method: they must score chance.

Each goes the way of every prompt method: replies are read from texts that list the candidates,
scores by the decoding of the comparison. A recommender that knows nothing goes the way of every
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
from rpp.comparison.references import RandomPolicy
from rpp.llms.base import LanguageModel, ScriptedLanguageModel
from rpp.llms.controls import Behaviour, ControlLanguageModel, scores_all_alike, scores_at_random
from rpp.metrics import METRICS, chance, chance_interval, target_ranks
from rpp.ranker import Decoding, Ranker
from rpp.types import Episode, Ranking, final_scoring

CHECKED = ("ndcg@1", "ndcg@5", "ndcg@10")

FALSE_ALARM = 1e-3
"""Probability that any of the controls of a sound comparison leaves its interval."""


def control_ranks(task: Task, episodes: Sequence[Episode]) -> dict[str, Tensor]:
    """Ranks of the targets by every control, ``(B,)`` each.

    The only place that looks at test targets before the methods have chosen; all that comes of
    it is whether there will be a table.
    """
    nothing = torch.zeros(len(episodes), _n_candidates(episodes))
    rankings: dict[str, Sequence[Ranking]] = {"knows nothing": rank(nothing, episodes, seed=1)}
    rankers = {
        behaviour: _beside(task.ranker, ControlLanguageModel(behaviour), "generate")
        for behaviour in get_args(Behaviour)
    }
    if task.ranker.decoding != "generate":
        for scorer in (scores_all_alike, scores_at_random):
            llm = ScriptedLanguageModel(scorer=scorer, name=scorer.__name__)
            rankers[scorer.__name__] = _beside(task.ranker, llm, task.ranker.decoding)
    for name, ranker in rankers.items():
        rankings[name] = RandomPolicy().learn(replace(task, ranker=ranker))(episodes)
    with final_scoring():
        return {name: target_ranks(each, episodes) for name, each in rankings.items()}


def _beside(ranker: Ranker, llm: LanguageModel, decoding: Decoding) -> Ranker:
    """A ranker that differs in the language model and perhaps in the decoding."""
    return Ranker(
        llm,
        decoding,
        show_candidates=ranker.display.show_candidates or decoding != "likelihood",
        per_character=ranker.per_character,
        layout=ranker.display.layout,
        seed=ranker.seed,
    )


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
