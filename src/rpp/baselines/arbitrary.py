"""A recommender without skill: the control of evidence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rpp.baselines.base import Recommender, Scorer, TrainingData
from rpp.types import Episode, arbitrary_order


class Arbitrary(Recommender):
    """Scores in a random order that depends on user, candidates and seed.

    Args:
        seed: Of the order.
    """

    name = "arbitrary order"

    def __init__(self, seed: int = 1000) -> None:
        self.seed = seed

    def learn(self, data: TrainingData) -> Scorer:
        """There is nothing to learn."""

        def score(episodes: Sequence[Episode]) -> Tensor:
            orders = torch.tensor([arbitrary_order(each, self.seed) for each in episodes])
            return -orders.argsort(dim=1).double()

        return score
