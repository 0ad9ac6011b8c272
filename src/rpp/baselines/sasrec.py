"""SASRec: self-attentive sequential recommendation (Kang and McAuley, 2018)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from rich.console import Console
from torch import Tensor, nn

from rpp.baselines.base import Recommender, Scorer, TrainingData
from rpp.baselines.sequential import (
    SequenceEncoder,
    SequentialModel,
    check_sizes,
    seeded,
    train,
)
from rpp.baselines.weights import load_weights
from rpp.baselines.windows import WindowBatches
from rpp.types import InputError


class SASRecModel(SequentialModel):
    """An embedding per item, shared by input and output.

    Args:
        n_items: Number of items.
        encoder: The transformer.
        lr: Learning rate of Adam.
        n_negatives: Uniformly sampled negatives per step; 0: softmax over all items.
    """

    def __init__(
        self, n_items: int, encoder: SequenceEncoder, lr: float = 1e-3, n_negatives: int = 0
    ) -> None:
        self.n_negatives = n_negatives
        super().__init__(encoder, lr, temperature=None)
        self.items = nn.Embedding(n_items, encoder.positions.embedding_dim)
        nn.init.normal_(self.items.weight, std=0.02)

    def vectors(self, items: Tensor) -> Tensor:
        """Embeddings."""
        embedded: Tensor = self.items(items)
        return embedded

    def pool(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """All items, or the targets of the batch and sampled negatives."""
        n_items = self.items.num_embeddings
        if not 0 < self.n_negatives < n_items:
            return self.items.weight, targets
        drawn = torch.randint(n_items, (self.n_negatives,), device=targets.device)
        pool, places = torch.cat([targets, drawn]).unique(return_inverse=True)
        return self.items(pool), places[: len(targets)]


class SASRec(Recommender):
    """SASRec, trained on every next item of every user's training interactions.

    Departures: a long sequence is divided into several windows instead of truncated; every position
    of a window is a prediction.

    Args:
        dim: Width of item embeddings.
        n_layers: Transformer layers.
        n_heads: Attention heads.
        inner_dim: Width of the feed-forward layers.
        dropout: On the input, attention and layers; 0.2 where users have long histories (ML-1M).
        max_length: Number of most recent items that are read.
        learning_rates: Of Adam; selected by validation NDCG@10.
        batch_size: Approximate number of predictions per step.
        n_negatives: Uniformly sampled negatives per step; the loss is a softmax over targets and
            negatives. 0: over all items.
        max_epochs: Passes over the training interactions.
        patience: Epochs without improvement of validation NDCG@10 before training stops.
        seed: Of initial weights, dropout, windows and their order.
    """

    name = "SASRec"

    def __init__(
        self,
        dim: int = 64,
        n_layers: int = 2,
        n_heads: int = 2,
        inner_dim: int = 256,
        dropout: float = 0.5,
        max_length: int = 50,
        learning_rates: tuple[float, ...] = (1e-3,),
        batch_size: int = 512,
        n_negatives: int = 1024,
        max_epochs: int = 50,
        patience: int = 5,
        seed: int = 0,
    ) -> None:
        if not learning_rates:
            raise InputError("SASRec needs a learning rate")
        check_sizes(
            self.name, dim, n_heads, n_layers=n_layers, inner_dim=inner_dim, max_length=max_length,
            batch_size=batch_size, max_epochs=max_epochs, patience=patience,
        )  # fmt: skip
        self.dim = dim
        self.n_layers = n_layers
        self.n_heads = n_heads
        self.inner_dim = inner_dim
        self.dropout = dropout
        self.max_length = max_length
        self.learning_rates = learning_rates
        self.batch_size = batch_size
        self.n_negatives = n_negatives
        self.max_epochs = max_epochs
        self.patience = patience
        self.seed = seed

    def learn(self, data: TrainingData) -> Scorer:
        """Train once with every learning rate, or load the cached model."""

        def make() -> Mapping[str, Tensor]:
            runs = [self._train(data, lr) for lr in self.learning_rates]
            return max(runs, key=lambda run: run[0])[1]

        def load(weights: Mapping[str, Tensor]) -> Scorer:
            model = self._model(data, self.learning_rates[0])
            load_weights(model, weights)
            return model.score

        return data.keep("sasrec", self.arguments, make, load)

    def _model(self, data: TrainingData, lr: float) -> SASRecModel:
        with seeded(self.seed):
            encoder = SequenceEncoder(
                self.dim, self.n_layers, self.n_heads, self.inner_dim, self.dropout, self.max_length
            )
            return SASRecModel(data.n_items, encoder, lr, self.n_negatives)

    def _train(self, data: TrainingData, lr: float) -> tuple[float, Mapping[str, Tensor]]:
        """Validation NDCG@10 and weights."""
        Console(stderr=True).print(
            f"Training SASRec on {len(data.items):,} interactions, learning rate {lr:g}"
        )
        batches = WindowBatches(
            [(data.users, data.items)], self.max_length, self.batch_size, self.seed
        )
        model = self._model(data, lr)
        with seeded(self.seed):
            value = train(
                model,
                batches,
                data.validation,
                max_epochs=self.max_epochs,
                patience=self.patience,
            )
        return value, model.state_dict()
