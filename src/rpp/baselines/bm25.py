"""BM25 on the words of titles."""

from __future__ import annotations

from collections.abc import Sequence

import bm25s
import numpy as np
import torch
from torch import Tensor

from rpp.baselines.base import Recommender, Scorer, TrainingData, candidate_items, past_items
from rpp.types import Episode, normalise


class BM25(Recommender):
    r"""BM25: the words of the titles in the history as a query, a candidate's title as a document.

    .. math::
        s(q, d) = \sum_{w \in q} \mathrm{idf}(w)
        \frac{f_{w,d}}{f_{w,d} + k_1 (1 - b + b |d| / \overline{|d|})}, \qquad
        \mathrm{idf}(w) = \ln \Big(1 + \frac{N - n_w + .5}{n_w + .5} \Big)

    A word that occurs several times in the history counts several times. Published runs used
    *characters* as query terms and the size of the corpus instead of a title's length.

    Args:
        n_history: Titles of the history in the query, the last ones; 0 means all.
        k1: Saturation of a word's repetition.
        b: Weight of a title's length, 0 to 1.
    """

    name = "BM25"

    def __init__(self, n_history: int = 50, k1: float = 1.5, b: float = 0.75) -> None:
        self.n_history = n_history
        self.k1 = k1
        self.b = b

    def learn(self, data: TrainingData) -> Scorer:
        """Index the titles of the catalogue."""
        words = [normalise(title).split() for title in data.titles]
        index = bm25s.BM25(k1=self.k1, b=self.b, method="lucene", dtype="float64")
        index.index(words, show_progress=False)

        def score(episodes: Sequence[Episode]) -> Tensor:
            rows = []
            for episode, candidates in zip(episodes, candidate_items(episodes), strict=True):
                query = [w for item in past_items(episode, self.n_history) for w in words[item]]
                scores = index.get_scores(query) if query else np.zeros(len(words))
                rows.append(torch.from_numpy(scores)[candidates])
            return torch.stack(rows)

        return score
