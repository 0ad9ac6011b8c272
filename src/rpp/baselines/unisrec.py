"""UniSRec: sequences of encoded titles, adapted by a mixture of experts (Hou et al., 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rpp.baselines.sequential import SequenceEncoder
from rpp.baselines.text import TextModel, TextRecommender


class Adaptor(nn.Module):
    r"""Mixture of parametric whitenings of an encoded title.

    .. math::
        \tilde{x}_k = (x - b_k) W_k, \qquad
        v = \sum_k g_k \tilde{x}_k, \qquad
        g = \mathrm{softmax}(x W_g + \epsilon \, (\mathrm{softplus}(x W_n) + .01))

    with :math:`\epsilon` standard normal in training and 0 afterwards.

    Args:
        width: Width ``E`` of an encoded title.
        dim: Width ``D`` of an item vector.
        n_experts: Number of whitenings.
        dropout: On the encoded title, in training.
    """

    def __init__(self, width: int, dim: int, n_experts: int = 8, dropout: float = 0.2) -> None:
        super().__init__()
        self.shifts = nn.Parameter(torch.zeros(n_experts, width))
        self.weights = nn.Parameter(torch.randn(n_experts, width, dim) * 0.02)
        self.gate = nn.Parameter(torch.zeros(width, n_experts))
        self.noise = nn.Parameter(torch.zeros(width, n_experts))
        self.dropout = nn.Dropout(dropout)

    def forward(self, encodings: Tensor) -> Tensor:
        """From encoded titles ``(N, E)`` to item vectors ``(N, D)``."""
        logits = encodings @ self.gate
        if self.training:
            spread = functional.softplus(encodings @ self.noise) + 0.01
            logits = logits + torch.randn_like(logits) * spread
        inputs = self.dropout(encodings.expand(len(self.shifts), -1, -1)) - self.shifts[:, None]
        experts = inputs @ self.weights  # (experts, N, D)
        return torch.einsum("nk,knd->nd", logits.softmax(dim=-1), experts)


class UniSRecModel(TextModel):
    """Item vectors by an :class:`Adaptor`."""

    def __init__(
        self, encoder: SequenceEncoder, adaptor: Adaptor, lr: float, temperature: float
    ) -> None:
        super().__init__(encoder, lr, temperature)
        self.adaptor = adaptor

    def describe(self, encodings: Tensor) -> Tensor:
        """The encodings themselves."""
        return encodings

    def represent(self, described: Tensor) -> Tensor:
        """Adapted encodings."""
        vectors: Tensor = self.adaptor(described)
        return vectors


class UniSRec(TextRecommender):
    """UniSRec, inductive: trained on other data sets, items represented by their titles.

    Args:
        n_experts: Whitenings in the mixture.
        adaptor_dropout: On encoded titles, in training.
        kwargs: As of :class:`rpp.baselines.text.TextRecommender`.
    """

    name = "UniSRec"

    def __init__(self, n_experts: int = 8, adaptor_dropout: float = 0.2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.n_experts = n_experts
        self.adaptor_dropout = adaptor_dropout

    def build(self, encoder: SequenceEncoder, width: int) -> UniSRecModel:
        """Model with initial weights."""
        adaptor = Adaptor(width, self.dim, self.n_experts, self.adaptor_dropout)
        return UniSRecModel(encoder, adaptor, self.lr, self.temperature)

    def translate(self, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The adaptor's weights."""
        theirs = [f"moe_adaptor.experts.{k}" for k in range(self.n_experts)]
        return {
            "adaptor.shifts": torch.stack([published[f"{name}.bias"] for name in theirs]),
            "adaptor.weights": torch.stack([published[f"{name}.lin.weight"].T for name in theirs]),
            "adaptor.gate": published["moe_adaptor.w_gate"],
            "adaptor.noise": published["moe_adaptor.w_noise"],
        }
