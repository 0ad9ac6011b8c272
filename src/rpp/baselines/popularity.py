"""Popularity, the same for every user."""

from __future__ import annotations

import torch

from rpp.baselines.base import Recommender, Scorer, TrainingData, candidate_items


class Popularity(Recommender):
    """Pop: an item's number of training interactions."""

    name = "Pop"

    def learn(self, data: TrainingData) -> Scorer:
        """Count."""
        counts = torch.bincount(torch.from_numpy(data.items), minlength=data.n_items)
        return lambda episodes: counts[candidate_items(episodes)]
