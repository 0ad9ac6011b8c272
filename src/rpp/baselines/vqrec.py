"""VQ-Rec: vector-quantised titles as item representations (Hou et al., 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor, nn

from rpp.baselines.sequential import SequenceEncoder
from rpp.baselines.text import TextModel, TextRecommender
from rpp.types import InputError


def fit_quantiser(encodings: Tensor, n_parts: int, n_codes: int) -> tuple[Tensor, Tensor]:
    """Optimised product quantisation: a rotation, and centroids of each part of the rotated space.

    Args:
        encodings: Shape ``(n_items, E)``, ``E`` a multiple of ``n_parts``.
        n_parts: Parts the rotated space is cut into.
        n_codes: Centroids of each part, a power of 2.

    Returns:
        Rotation of shape ``(E, E)``, to be applied as ``encodings @ rotation.T``, and centroids
        of shape ``(n_parts, n_codes, E / n_parts)``.

    Raises:
        InputError: If there are fewer items than codes or the numbers do not divide.
    """
    n_items, width = encodings.shape
    bits = n_codes.bit_length() - 1
    if n_items < n_codes or width % n_parts or n_codes != 1 << bits:
        raise InputError(
            f"{n_items} titles of width {width} cannot be cut into {n_parts} parts of {n_codes}"
            " codes: choose n_parts that divides the width and n_codes a power of 2, at most the"
            " number of titles"
        )
    points = np.ascontiguousarray(encodings.float().numpy())
    quantiser = faiss.ProductQuantizer(width, n_parts, bits)
    quantiser.cp.min_points_per_centroid = 1  # no warning for a small number of titles
    rotation = faiss.OPQMatrix(width, n_parts)
    rotation.niter = 20
    rotation.pq = quantiser
    rotation.train(points)
    quantiser.train(rotation.apply(points))
    matrix = faiss.vector_to_array(rotation.A).reshape(width, width)
    centroids = faiss.vector_to_array(quantiser.centroids).reshape(n_parts, n_codes, -1)
    return torch.from_numpy(matrix.copy()), torch.from_numpy(centroids.copy())


def assign_codes(encodings: Tensor, rotation: Tensor, centroids: Tensor) -> Tensor:
    """Nearest centroid of each part of the rotated encodings.

    Args:
        encodings: Shape ``(n_items, E)``.
        rotation: Shape ``(E, E)``.
        centroids: Shape ``(n_parts, n_codes, E / n_parts)``.

    Returns:
        Shape ``(n_items, n_parts)``, from 0.
    """
    n_parts, _, width = centroids.shape
    parts = (encodings @ rotation.T).view(-1, n_parts, width).transpose(0, 1)
    return torch.cdist(parts, centroids).argmin(dim=-1).T


class VQRecModel(TextModel):
    """Item vectors as means of code vectors.

    Args:
        encoder: The transformer.
        width: Width ``E`` of an encoded title.
        n_parts: Codes of an item.
        n_codes: Values a code can have.
        fake_share: Share of a real item's codes that are resampled to make a fake item, used as a
            negative in training.
        lr: Learning rate of Adam.
        temperature: Divides the cosine.
    """

    rotation: Tensor
    centroids: Tensor

    def __init__(
        self,
        encoder: SequenceEncoder,
        width: int,
        n_parts: int,
        n_codes: int,
        fake_share: float,
        lr: float,
        temperature: float,
    ) -> None:
        super().__init__(encoder, lr, temperature)
        self.fake_share = fake_share
        self.codes = nn.Embedding(n_parts * n_codes, encoder.positions.embedding_dim)
        nn.init.normal_(self.codes.weight, std=0.02)
        self.register_buffer("rotation", torch.eye(width))
        self.register_buffer("centroids", torch.zeros(n_parts, n_codes, width // n_parts))

    def describe(self, encodings: Tensor) -> Tensor:
        """Codes, shape ``(n_items, n_parts)``."""
        return assign_codes(encodings, self.rotation, self.centroids)

    def represent(self, described: Tensor) -> Tensor:
        """Mean of the vectors of an item's codes."""
        n_parts, n_codes, _ = self.centroids.shape
        rows = described + n_codes * torch.arange(n_parts, device=described.device)
        mean: Tensor = self.codes(rows).mean(dim=-2)
        return mean

    def pool(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The targets of the batch, and for each a fake item made from its codes."""
        distinct, places = targets.unique(return_inverse=True)
        real = self.catalogue[distinct]
        drawn = torch.randint_like(real, self.centroids.shape[1])
        fake = drawn.where(torch.rand(real.shape, device=real.device) < self.fake_share, real)
        return self.represent(torch.cat([real, fake])), places


class VQRec(TextRecommender):
    """VQ-Rec, inductive: trained on other data sets, items known by the codes of their titles.

    The quantiser is fitted to the titles of the training data sets. The published weights do not
    include their quantiser; with them it is fitted to the titles of the evaluated data set, as in
    published comparisons, and the codes differ in meaning from those of the training.

    Args:
        n_parts: Codes of an item.
        n_codes: Values a code can have, a power of 2.
        fake_share: Share of codes that are resampled to make a fake item in training.
        kwargs: As of :class:`rpp.baselines.text.TextRecommender`.
    """

    name = "VQ-Rec"

    def __init__(
        self, n_parts: int = 32, n_codes: int = 256, fake_share: float = 0.75, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.n_parts = n_parts
        self.n_codes = n_codes
        self.fake_share = fake_share

    def build(self, encoder: SequenceEncoder, width: int) -> VQRecModel:
        """Model with initial weights and no centroids yet."""
        return VQRecModel(
            encoder, width, self.n_parts, self.n_codes, self.fake_share, self.lr, self.temperature
        )

    def prepare(self, model: VQRecModel, encodings: Tensor) -> None:
        """Fit the quantiser."""
        model.rotation, model.centroids = fit_quantiser(encodings, self.n_parts, self.n_codes)

    def translate(self, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Code vectors; the published table has a row for padding before each part's."""
        table = published["pq_code_embedding.weight"]
        rows = table.view(self.n_parts, self.n_codes + 1, -1)[:, 1:]
        return {"codes.weight": rows.reshape(self.n_parts * self.n_codes, -1)}
