"""A sum of the z-scores of other recommenders."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rpp.baselines.base import Recommender, Scorer, TrainingData
from rpp.baselines.neighbours import ItemKNN
from rpp.baselines.popularity import Popularity
from rpp.types import Episode, InputError


def z_scores(scores: Tensor) -> Tensor:
    r"""Scores of one user's candidates with mean 0 and standard deviation 1.

    .. math:: z_c = (s_c - \bar{s}) / \sqrt{\overline{(s - \bar{s})^2}}

    Args:
        scores: Shape ``(B, M)``; a row of equal scores becomes zeros.
    """
    centred = scores - scores.mean(dim=1, keepdim=True)
    deviation = centred.square().mean(dim=1, keepdim=True).sqrt()
    scale = scores.abs().amax(dim=1, keepdim=True)
    even = deviation <= 1e-12 * scale  # equal but for the rounding of the mean
    return (centred / deviation.where(~even, 1.0)).masked_fill(even, 0.0)


class Blend(Recommender):
    """Sum of the z-scores of other recommenders over each user's candidates.

    Args:
        recommenders: The recommenders; by default popularity and item-kNN.
    """

    def __init__(self, recommenders: list[Recommender] | None = None) -> None:
        self.recommenders = [Popularity(), ItemKNN()] if recommenders is None else recommenders
        if not self.recommenders:
            raise InputError("a blend of no recommenders: name at least one")
        self.name = " + ".join(recommender.name for recommender in self.recommenders)

    def learn(self, data: TrainingData) -> Scorer:
        """Let every part learn."""
        scorers = [recommender.learn(data) for recommender in self.recommenders]

        def score(episodes: Sequence[Episode]) -> Tensor:
            return torch.stack([z_scores(part(episodes).double()) for part in scorers]).sum(dim=0)

        return score
