r"""Item-to-item methods without gradient descent: cosine neighbours and EASE.

Both score a candidate by a sum over the last :math:`n` items of the history,
:math:`s(u, c) = \sum_{h} w_{hc}`; how many items help best differs by method and data set and is
chosen on validation users.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from rich.console import Console
from scipy.sparse import csr_array, diags_array
from torch import Tensor

from rpp.baselines.base import (
    Recommender,
    Scorer,
    TrainingData,
    candidate_items,
    choose,
    past_items,
    validation_ndcg,
)
from rpp.types import Episode, InputError

log = logging.getLogger(__name__)

LENGTHS = (1, 2, 3, 5, 10, 20, 50, 0)
"""History lengths to choose from; 0 means all of it."""


def unit_columns(matrix: csr_array) -> csr_array:
    """The matrix with every column divided by its Euclidean length; empty columns stay empty."""
    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=0)).ravel())
    return csr_array(matrix @ diags_array(1 / np.where(lengths > 0, lengths, 1)))


class ItemKNN(Recommender):
    r"""Item-kNN: cosine of two items' columns in the binary training matrix, summed.

    .. math:: w_{hc} = \hat{x}_h^\top \hat{x}_c, \qquad \hat{x}_i = x_i / |x_i|

    All neighbours count. The sum over the history is taken before the product, so no
    item-by-item matrix is needed.

    Args:
        lengths: Numbers of last items to choose from; 0 means the whole history.
    """

    name = "Item-kNN"

    def __init__(self, lengths: tuple[int, ...] = LENGTHS) -> None:
        self.lengths = check_lengths(lengths)

    def learn(self, data: TrainingData) -> Scorer:
        """Normalise the columns; choose the length."""
        columns = unit_columns(data.matrix).T.tocsr()  # (n_items, n_users)

        def scorer(n_history: int) -> Scorer:
            def score(episodes: Sequence[Episode]) -> Tensor:
                rows = []
                for episode, candidates in zip(episodes, candidate_items(episodes), strict=True):
                    taste = columns[past_items(episode, n_history)].sum(axis=0)
                    rows.append(columns[candidates.numpy()] @ taste)
                return torch.from_numpy(np.stack(rows))

            return score

        if len(self.lengths) == 1:
            return scorer(self.lengths[0])
        n_history = data.keep(
            "item-knn",
            self.arguments,
            lambda: {"n_history": torch.tensor(choose(self.lengths, scorer, data.validation))},
            lambda tensors: int(tensors["n_history"]),
        )
        return scorer(n_history)


def ease_weights(gram: Tensor, regularisation: float) -> Tensor:
    r"""EASE: the linear map that best predicts each item from all others (Steck, 2019).

    .. math::
        P = (X^\top X + \lambda I)^{-1}, \qquad
        w_{hc} = -P_{hc} / P_{cc} \text{ for } h \ne c, \qquad w_{cc} = 0

    Args:
        gram: :math:`X^\top X`, shape ``(n, n)``; overwritten, for it may be large.
        regularisation: :math:`\lambda`, above 0.
    """
    gram.diagonal().add_(regularisation)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram)).T  # symmetric; rows in sequence
    inverse /= -inverse.diagonal().clone()
    inverse.diagonal().zero_()
    return inverse


class EASE(Recommender):
    """EASE: a closed-form linear autoencoder.

    The cached file has ``4 n²`` bytes for ``n`` items, 1.1 GB for the 16,428 of Games; fitting
    takes three to four times as much memory.

    Args:
        regularisations: Values of lambda to choose from.
        lengths: Numbers of last items to choose from; 0 means the whole history.
        max_items: Only this number of the most popular items is modelled; any other item scores
            0.
    """

    name = "EASE"

    def __init__(
        self,
        regularisations: tuple[float, ...] = (50.0, 250.0, 1000.0),
        lengths: tuple[int, ...] = LENGTHS,
        max_items: int = 20_000,
    ) -> None:
        if not regularisations or min(regularisations) <= 0:
            raise InputError(f"EASE's regularisations are {regularisations}: name positive numbers")
        if max_items < 1:
            raise InputError(f"EASE's max_items is {max_items}: choose 1 or more")
        self.regularisations = regularisations
        self.lengths = check_lengths(lengths)
        self.max_items = max_items

    def learn(self, data: TrainingData) -> Scorer:
        """Invert once per lambda; choose lambda and length."""
        counts = np.asarray(data.matrix.sum(axis=0)).ravel()
        modelled = np.sort(np.argsort(-counts, kind="stable")[: self.max_items])
        if len(modelled) < data.n_items:
            log.warning("EASE models the %d most popular of %d items", len(modelled), data.n_items)
        place = torch.full((data.n_items,), -1)
        place[torch.from_numpy(modelled)] = torch.arange(len(modelled))
        part = data.matrix[:, modelled].astype(np.float32)

        def weights(regularisation: float) -> Tensor:
            gram = torch.from_numpy((part.T @ part).toarray())
            with Console(stderr=True).status(
                f"EASE: inverting {len(modelled):,} items, lambda {regularisation:g}"
            ):
                return ease_weights(gram, regularisation)

        def scorer(matrix: Tensor, n_history: int) -> Scorer:
            def score(episodes: Sequence[Episode]) -> Tensor:
                return torch.stack(
                    [
                        _sum(matrix, place[past_items(episode, n_history)], place[candidates])
                        for episode, candidates in zip(
                            episodes, candidate_items(episodes), strict=True
                        )
                    ]
                )

            return score

        def make() -> Mapping[str, Tensor]:
            if len(self.regularisations) == len(self.lengths) == 1:
                matrix = weights(self.regularisations[0])
                return {"weights": matrix, "n_history": torch.tensor(self.lengths[0])}
            best: tuple[float, int, Tensor] | None = None
            for regularisation in self.regularisations:
                matrix = weights(regularisation)
                for n_history in self.lengths:
                    value = validation_ndcg(scorer(matrix, n_history), data.validation)
                    if best is None or value > best[0]:
                        best = value, n_history, matrix
            assert best is not None  # neither tuple is empty
            return {"weights": best[2], "n_history": torch.tensor(best[1])}

        return data.keep(
            "ease",
            self.arguments,
            make,
            lambda tensors: scorer(tensors["weights"], int(tensors["n_history"])),
        )


def _sum(matrix: Tensor, history: Tensor, candidates: Tensor) -> Tensor:
    """Sum of rows ``history`` at columns ``candidates``; negative indices are ignored."""
    rows = history[history >= 0]
    values = matrix[rows[:, None], candidates.clamp(min=0)].double().sum(dim=0)
    return values.where(candidates >= 0, 0.0)


def check_lengths(lengths: tuple[int, ...]) -> tuple[int, ...]:
    """The lengths, if they can be history lengths.

    Raises:
        InputError: If there is none or one is negative.
    """
    if not lengths or min(lengths) < 0:
        raise InputError(
            f"history lengths are {lengths}: name numbers of last items, or 0 for the whole history"
        )
    return lengths
