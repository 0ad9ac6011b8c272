"""Base of UniSRec and VQ-Rec: items represented by their titles, training on other data sets.

Both are used inductively: nothing is trained on the data set of the comparison. If the published
weights, trained on five Amazon domains, are not available, the same architecture is trained on
other prepared folders. Departures from the published pre-training: every position of a sequence is
a prediction, not only its end; each distinct target of a batch is one negative, whatever its
frequency; UniSRec's second loss (contrast with augmented sequences, weight 0.001) is omitted; only
titles are encoded, by default with MiniLM's mean pooling instead of BERT's first token.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from rpp.baselines.base import Recommender, Scorer, TrainingData
from rpp.baselines.sequential import (
    SequenceEncoder,
    SequentialModel,
    check_sizes,
    seeded,
    train,
)
from rpp.baselines.weights import load_weights, read_weights, translate_encoder, weights_file
from rpp.baselines.windows import WindowBatches
from rpp.encoders import PromptEncoder
from rpp.types import Episode, InputError, Item

Pooling = Literal["mean", "cls"]


class TextModel(SequentialModel):
    """A sequential model with item vectors made from encoded titles.

    Attributes:
        catalogue: Representation of each item, from :meth:`describe`; replaced with the data set.
    """

    catalogue: Tensor

    def __init__(self, encoder: SequenceEncoder, lr: float, temperature: float) -> None:
        super().__init__(encoder, lr, temperature)
        self.register_buffer("catalogue", torch.empty(0), persistent=False)

    @abstractmethod
    def describe(self, encodings: Tensor) -> Tensor:
        """Item representations from encoded titles, ``(n_items, E)`` to ``(n_items, ...)``."""

    @abstractmethod
    def represent(self, described: Tensor) -> Tensor:
        """Item vectors from representations, ``(N, ...)`` to ``(N, D)``."""

    def vectors(self, items: Tensor) -> Tensor:
        """Item vectors, computed once per distinct item."""
        distinct, places = items.unique(return_inverse=True)
        return self.represent(self.catalogue[distinct])[places]

    def pool(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The targets of the batch, from any data set."""
        distinct, places = targets.unique(return_inverse=True)
        return self.represent(self.catalogue[distinct]), places


class TextRecommender(Recommender):
    """Pre-trained on other data sets; see the module's notes.

    Args:
        sources: Prepared folders to train on, without the one that is fitted.
        weights: A local file of published or own weights instead: ``.safetensors``, or a file of
            ``torch.save`` that contains only tensors.
        text_model: Encoder of titles: ``minilm-l6``, a local folder or a hub id; the published
            weights need ``bert-base-uncased``.
        pooling: ``mean`` of all tokens, or ``cls`` (the published weights).
        dim: Width of item vectors.
        n_layers: Transformer layers.
        n_heads: Attention heads.
        inner_dim: Width of the feed-forward layers.
        dropout: Of the transformer.
        max_length: Number of most recent items that are read.
        temperature: Divides the cosine.
        lr: Learning rate of Adam.
        batch_size: Approximate number of predictions per step.
        max_windows: Randomly drawn sequences per source and epoch, so that a large source does
            not dominate a small one.
        max_epochs: Epochs at most.
        patience: Epochs without improvement on the sources' validation users before training stops.
        seed: Of initial weights, dropout, windows and their order.
    """

    def __init__(
        self,
        sources: tuple[str, ...] = (),
        weights: str | None = None,
        text_model: str = "minilm-l6",
        pooling: Pooling = "mean",
        dim: int = 300,
        n_layers: int = 2,
        n_heads: int = 2,
        inner_dim: int = 256,
        dropout: float = 0.5,
        max_length: int = 50,
        temperature: float = 0.07,
        lr: float = 1e-3,
        batch_size: int = 1024,
        max_windows: int = 2000,
        max_epochs: int = 15,
        patience: int = 3,
        seed: int = 0,
    ) -> None:
        if bool(sources) == bool(weights):
            raise InputError(
                f"{self.name} needs either sources, prepared folders of other data sets to train"
                " on, or a file of weights"
            )
        check_sizes(
            self.name, dim, n_heads, n_layers=n_layers, inner_dim=inner_dim, max_length=max_length,
            batch_size=batch_size, max_windows=max_windows, max_epochs=max_epochs,
            patience=patience,
        )  # fmt: skip
        self.sources = sources
        self.weights = weights
        self.text_model = text_model
        self.pooling: Pooling = pooling
        self.dim = dim
        self.n_layers = n_layers
        self.n_heads = n_heads
        self.inner_dim = inner_dim
        self.dropout = dropout
        self.max_length = max_length
        self.temperature = temperature
        self.lr = lr
        self.batch_size = batch_size
        self.max_windows = max_windows
        self.max_epochs = max_epochs
        self.patience = patience
        self.seed = seed

    @abstractmethod
    def build(self, encoder: SequenceEncoder, width: int) -> TextModel:
        """A model with initial weights for encodings of a width."""

    @abstractmethod
    def translate(self, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Published weights of the item representation, with our names."""

    def prepare(self, model: Any, encodings: Tensor) -> None:
        """Fit what is not trained by gradient descent; nothing by default."""

    def learn(self, data: TrainingData) -> Scorer:
        """Train on the sources or load the weights; then represent the titles of the data set."""
        sources = [TrainingData.read(Path(source)) for source in self.sources]
        for source in sources:
            if source.folder.resolve() == data.folder.resolve() or (
                source.name and source.name == data.name
            ):
                raise InputError(
                    f"{self.name} is to be compared on {data.folder} and cannot train on"
                    f" {source.folder}, the same data set: take it out of sources"
                )
        encodings = encode_titles(data, self.text_model, self.pooling)

        def make() -> Mapping[str, Tensor]:
            return self._train(sources) if sources else self._published(encodings)

        def load(weights: Mapping[str, Tensor]) -> Scorer:
            model = self._model(encodings.shape[1])
            load_weights(model, weights)
            model.catalogue = model.describe(encodings)
            return model.score

        # the key has the content of the sources, not their paths
        settings = self.arguments | {"sources": [source.fingerprint for source in sources]}
        if self.weights is not None:
            settings["changed"] = weights_file(self.weights).stat().st_mtime_ns
        return data.keep(self.name.lower(), settings, make, load)

    def _model(self, width: int) -> TextModel:
        with seeded(self.seed):
            encoder = SequenceEncoder(
                self.dim, self.n_layers, self.n_heads, self.inner_dim, self.dropout, self.max_length
            )
            return self.build(encoder, width)

    def _train(self, sources: Sequence[TrainingData]) -> Mapping[str, Tensor]:
        encodings = torch.cat([encode_titles(s, self.text_model, self.pooling) for s in sources])
        firsts = np.cumsum([0, *(source.n_items for source in sources)]).tolist()
        shifted = list(zip(sources, firsts, strict=False))
        names = " and ".join(source.folder.name for source in sources)
        Console(stderr=True).print(f"Training {self.name} on {names}", soft_wrap=True)
        model = self._model(encodings.shape[1])
        self.prepare(model, encodings)
        model.catalogue = model.describe(encodings)
        batches = WindowBatches(
            [(source.users, source.items + first) for source, first in shifted],
            self.max_length, self.batch_size, self.seed, self.max_windows,
        )  # fmt: skip
        validation = [_shift(e, first) for source, first in shifted for e in source.validation]
        with seeded(self.seed):
            train(model, batches, validation, max_epochs=self.max_epochs, patience=self.patience)
        return model.state_dict()

    def _published(self, encodings: Tensor) -> Mapping[str, Tensor]:
        weights = read_weights(str(self.weights))
        if "position_embedding.weight" not in weights:
            return weights  # our own
        model = self._model(encodings.shape[1])
        self.prepare(model, encodings)
        try:
            ours = translate_encoder(weights, self.n_layers) | self.translate(weights)
        except KeyError as error:
            raise InputError(f"{self.weights} lacks the weights {error} of {self.name}") from error
        return model.state_dict() | ours


def encode_titles(data: TrainingData, model: str, pooling: Pooling) -> Tensor:
    """Encoded titles, shape ``(n_items, E)``, computed once for a folder."""

    def make() -> Mapping[str, Tensor]:
        encoder = PromptEncoder(model, n_kept=0, pooling=pooling)
        chunks = [data.titles[k : k + 256] for k in range(0, data.n_items, 256)]
        console = Console(stderr=True)
        rows = [encoder(chunk) for chunk in track(chunks, "Encoding titles", console=console)]
        return {"titles": torch.cat(rows)}

    settings = {"text_model": model, "pooling": pooling}
    return data.keep("titles", settings, make, lambda tensors: tensors["titles"])


def _shift(episode: Episode, first: int) -> Episode:
    """The episode with item numbers of a joint catalogue."""

    def move(items: tuple[Item, ...]) -> tuple[Item, ...]:
        return tuple(Item(item.index + first, item.title) for item in items)

    return replace(episode, history=move(episode.history), candidates=move(episode.candidates))
