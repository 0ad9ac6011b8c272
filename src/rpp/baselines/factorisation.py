"""Matrix factorisation: BPR-MF, and LightGCN with the vectors of RPP's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch
from implicit.cpu.bpr import BayesianPersonalizedRanking
from scipy.sparse import csr_matrix
from torch import Tensor

from rpp.baselines.base import (
    Recommender,
    Scorer,
    TrainingData,
    candidate_items,
    validation_ndcg,
)
from rpp.data.lightgcn import LightGCNSettings, train_lightgcn
from rpp.data.pretrained import load_or_train
from rpp.data.vectors import CollaborativeVectors
from rpp.types import Episode, InputError


def dot_scorer(vectors: CollaborativeVectors) -> Scorer:
    """Scores as dot products of user and item vectors.

    A user without a vector is represented by the items in their history.
    """

    def score(episodes: Sequence[Episode]) -> Tensor:
        histories = [[item.index for item in episode.history] for episode in episodes]
        users = vectors.for_users([episode.user for episode in episodes], histories).double()
        items = vectors.items[candidate_items(episodes)].double()  # (B, M, dim)
        return (items * users[:, None]).sum(dim=-1)

    return score


class BPRMF(Recommender):
    r"""BPR-MF: dot products of user and item vectors, trained on pairs (Rendle et al., 2009).

    .. math:: -\ln \sigma(\mathbf{u}^\top \mathbf{i} - \mathbf{u}^\top \mathbf{j})

    Stochastic gradient descent by the library ``implicit``, on one thread, so that runs are
    reproducible. Learning rate and number of epochs are selected by validation NDCG@10. Items
    have a bias.

    Args:
        dim: Width of the vectors.
        learning_rates: Step sizes to choose from (of plain gradient descent, not Adam).
        regularisation: Weight of the squared lengths.
        max_epochs: Passes over the training interactions.
        check_every: Epochs between two validations.
        patience: Validations without improvement before training stops.
        seed: Of initial vectors and negatives.
    """

    name = "BPR-MF"

    def __init__(
        self,
        dim: int = 64,
        learning_rates: tuple[float, ...] = (0.1, 0.03),
        regularisation: float = 0.01,
        max_epochs: int = 150,
        check_every: int = 5,
        patience: int = 5,
        seed: int = 0,
    ) -> None:
        if not learning_rates or min(dim, max_epochs, check_every, patience) < 1:
            raise InputError(
                "BPR-MF needs a learning rate and dim, max_epochs, check_every, patience above 0"
            )
        self.dim = dim
        self.learning_rates = learning_rates
        self.regularisation = regularisation
        self.max_epochs = max_epochs
        self.check_every = check_every
        self.patience = patience
        self.seed = seed

    def learn(self, data: TrainingData) -> Scorer:
        """Train with every learning rate, keep the best."""

        def make() -> Mapping[str, Tensor]:
            runs = [self._train(data, rate) for rate in self.learning_rates]
            vectors = max(runs, key=lambda run: run[0])[1]
            return {"users": vectors.users, "items": vectors.items}

        return data.keep(
            "bpr-mf",
            self.arguments,
            make,
            lambda tensors: dot_scorer(CollaborativeVectors(tensors["users"], tensors["items"])),
        )

    def _train(self, data: TrainingData, rate: float) -> tuple[float, CollaborativeVectors]:
        """Best validation NDCG@10 of one run and the vectors that reached it."""
        best = -1.0, CollaborativeVectors(torch.zeros(0, 1), torch.zeros(0, 1))
        best_epoch = 0
        model = BayesianPersonalizedRanking(
            factors=self.dim,
            learning_rate=rate,
            regularization=self.regularisation,
            iterations=self.max_epochs,
            num_threads=1,
            random_state=self.seed,
        )

        def look(epoch: int, *_: float) -> None:
            nonlocal best, best_epoch
            if (epoch + 1) % self.check_every and epoch + 1 < self.max_epochs:
                return
            vectors = CollaborativeVectors(
                torch.from_numpy(model.user_factors.copy()),
                torch.from_numpy(model.item_factors.copy()),
            )
            value = validation_ndcg(dot_scorer(vectors), data.validation)
            if value > best[0]:
                best, best_epoch = (value, vectors), epoch
            elif epoch - best_epoch >= self.check_every * self.patience:
                raise _EnoughError

        with suppress(_EnoughError):
            model.fit(csr_matrix(data.matrix), callback=look)
        return best


class _EnoughError(Exception):
    """Stops a run of the library, which has no early stopping."""


class LightGCN(Recommender):
    """LightGCN: dot products of the vectors that are RPP's first state as well.

    Args:
        settings: How they are trained; by default the vectors of the prepared folder are used.
    """

    name = "LightGCN"

    def __init__(self, settings: LightGCNSettings | None = None) -> None:
        self.settings = settings

    def learn(self, data: TrainingData) -> Scorer:
        """Load or train the vectors; of a part of the users, they are trained for it."""
        return dot_scorer(collaborative_vectors(data, self.settings))


def collaborative_vectors(
    data: TrainingData, settings: LightGCNSettings | None = None
) -> CollaborativeVectors:
    """LightGCN's vectors: those of the prepared folder, or of a part of its users.

    Args:
        data: The interactions, perhaps with their vectors.
        settings: How they are trained; by default as those of the data.
    """
    if data.vectors is not None and settings is None:
        return data.vectors
    if data.vectors is None and not data.left_out:
        return load_or_train(data.folder, settings or data.lightgcn)
    settings = settings or data.lightgcn or LightGCNSettings()

    def make() -> Mapping[str, Tensor]:
        vectors = train_lightgcn(data.users, data.items, data.n_users, data.n_items, settings)
        return {"users": vectors.users, "items": vectors.items}

    return data.keep(
        "lightgcn",
        {"settings": settings},
        make,
        lambda tensors: CollaborativeVectors(tensors["users"], tensors["items"]),
    )
