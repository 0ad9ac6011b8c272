"""A causal transformer over items and its training, for SASRec, UniSRec and VQ-Rec."""

from __future__ import annotations

import copy
import logging
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, TQDMProgressBar
from torch import Tensor, nn
from torch.nn import functional

from rpp.baselines.base import candidate_items, past_items, validation_ndcg
from rpp.baselines.windows import PAD, WindowBatches
from rpp.types import Episode, InputError

MONITOR = "val/ndcg@10"


class SequenceEncoder(nn.Module):
    """Causal self-attention over a sequence.

    Args:
        dim: Width ``D`` of item vectors and output.
        n_layers: Transformer layers.
        n_heads: Attention heads.
        inner_dim: Width of the feed-forward layers.
        dropout: On the input, attention and layers.
        max_length: Longest sequence.
    """

    def __init__(
        self,
        dim: int = 64,
        n_layers: int = 2,
        n_heads: int = 2,
        inner_dim: int = 256,
        dropout: float = 0.5,
        max_length: int = 50,
    ) -> None:
        super().__init__()
        self.max_length = max_length
        self.positions = nn.Embedding(max_length, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(
            dim, n_heads, inner_dim, dropout, "gelu", layer_norm_eps=1e-12, batch_first=True
        )
        self.layers = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)
        for name, weights in self.named_parameters():
            if weights.ndim > 1:
                nn.init.normal_(weights, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(weights)

    def forward(self, vectors: Tensor) -> Tensor:
        """Encode item vectors of shape ``(B, L, D)``, oldest first, to the same shape.

        Sequences are padded at their end, where the causal mask hides the padding.
        """
        length = vectors.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, vectors.device)
        inputs = self.dropout(self.norm(vectors + self.positions.weight[:length]))
        hidden: Tensor = self.layers(inputs, mask=mask, is_causal=True)
        return hidden


def similarity(hidden: Tensor, vectors: Tensor, temperature: float | None) -> Tensor:
    r"""Scores of items for an encoded sequence.

    .. math::
        \mathbf{h}^\top \mathbf{i} \qquad \text{or} \qquad
        \cos(\mathbf{h}, \mathbf{i}) / \tau

    Args:
        hidden: Shape ``(..., N, D)``.
        vectors: Shape ``(..., M, D)``.
        temperature: :math:`\tau`; ``None`` for the dot product.

    Returns:
        Shape ``(..., N, M)``.
    """
    if temperature is None:
        return hidden @ vectors.mT
    hidden, vectors = (functional.normalize(x, dim=-1) for x in (hidden, vectors))
    return hidden @ vectors.mT / temperature


class SequentialModel(LightningModule):
    """Predicts every next item of a sequence; a subclass has item vectors and negatives.

    Args:
        encoder: The transformer.
        lr: Learning rate of Adam.
        temperature: See :func:`similarity`.
    """

    def __init__(self, encoder: SequenceEncoder, lr: float, temperature: float | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.lr = lr
        self.temperature = temperature
        self.validation: Sequence[Episode] = ()
        self.best: tuple[float, dict[str, Tensor]] = (-1.0, {})

    @abstractmethod
    def vectors(self, items: Tensor) -> Tensor:
        """Vectors of items, from any shape ``(...)`` to ``(..., D)``."""

    @abstractmethod
    def pool(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Targets and negatives of the softmax, for targets of shape ``(N,)``.

        Returns:
            Vectors of shape ``(P, D)`` and the index of each target in them, shape ``(N,)``.
        """

    def training_step(self, batch: Tensor, _batch_idx: int) -> Tensor:
        """Cross-entropy of the next item, averaged over all predictions of a batch ``(B, L)``."""
        inputs, targets = batch[:, :-1], batch[:, 1:]
        real = targets != PAD
        hidden = self.encoder(self.vectors(inputs.clamp(min=0)))[real]
        vectors, places = self.pool(targets[real])
        loss = functional.cross_entropy(similarity(hidden, vectors, self.temperature), places)
        self.log("train/loss", loss, prog_bar=True, on_epoch=True, on_step=False)
        return loss

    def on_train_epoch_end(self) -> None:
        """Score the validation users; remember the best weights."""
        self.eval()
        value = validation_ndcg(self.score, self.validation)
        self.train()
        if value > self.best[0]:
            self.best = (value, copy.deepcopy(self.state_dict()))
        self.log(MONITOR, value, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    @torch.no_grad()
    def score(self, episodes: Sequence[Episode], batch_size: int = 256) -> Tensor:
        """Scores of every user's candidates, shape ``(B, M)``."""
        rows = []
        for start in range(0, len(episodes), batch_size):
            some = episodes[start : start + batch_size]
            histories = [past_items(episode, self.encoder.max_length) for episode in some]
            lengths = torch.tensor([len(history) for history in histories], device=self.device)
            inputs = nn.utils.rnn.pad_sequence(
                [torch.tensor(history, device=self.device) for history in histories], True
            )
            last = self.encoder(self.vectors(inputs))[torch.arange(len(some)), lengths - 1]
            candidates = self.vectors(candidate_items(some).to(self.device))
            rows.append(similarity(last[:, None], candidates, self.temperature)[:, 0].cpu())
        return torch.cat(rows)


def train(
    model: SequentialModel,
    batches: WindowBatches,
    validation: Sequence[Episode],
    *,
    max_epochs: int,
    patience: int,
) -> float:
    """Train; afterwards the model has the weights with the best validation NDCG@10.

    Gradients are clipped to norm 5.

    Args:
        model: What to train; left in evaluation mode on the CPU.
        batches: Training windows.
        validation: Users for selecting the epoch.
        max_epochs: Passes over the batches.
        patience: Epochs without improvement before training stops.

    Returns:
        That NDCG@10.
    """
    model.validation = validation
    with _quiet():
        Trainer(
            accelerator="auto",
            devices=1,
            max_epochs=max_epochs,
            gradient_clip_val=5.0,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            callbacks=[
                EarlyStopping(
                    MONITOR, patience=patience, mode="max", check_on_train_epoch_end=True
                ),
                TQDMProgressBar(refresh_rate=10),
            ],
        ).fit(model, batches)
    value, state = model.best
    if not all(weight.isfinite().all() for weight in state.values() if weight.is_floating_point()):
        raise InputError(f"training left the numbers with learning rate {model.lr:g}: lower it")
    model.cpu().load_state_dict(state)
    model.eval()
    return value


def check_sizes(name: str, dim: int, n_heads: int, **sizes: int) -> None:
    """Refuse invalid sizes of model or training.

    Raises:
        InputError: If one is below 1, or the heads do not share the width evenly.
    """
    for setting, value in {"dim": dim, "n_heads": n_heads, **sizes}.items():
        if value < 1:
            raise InputError(f"{name}'s {setting} is {value}: choose 1 or more")
    if dim % n_heads:
        raise InputError(
            f"{name}'s dim is {dim} and n_heads {n_heads}: choose a width that the heads share"
        )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generator inside, and restore its state afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide Lightning's notices about devices."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
