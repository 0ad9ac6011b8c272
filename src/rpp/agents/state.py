r"""The state shared by the agents (paper, section 3.3, Eq. 3-4).

.. math::
    s_0 = \mathrm{LN}(u), \qquad
    s_{t+1} = \mathrm{LN}(W \, \mathrm{BERT}(p_t)) + \mathrm{LN}(\mathrm{GRU}(o_t))

Departures: both terms and the user's vector are layer-normalised, so that they have the same
scale; the projection :math:`W` is a layer trained with the agents, where the released code fits a
PCA in every batch; the GRU receives its gradient. To save time, :math:`\mathrm{BERT}(p_t)` may be
the mean over the parts of the prompt (:func:`rpp.encoders.encode_parts`), as in ``conf/rpp.yaml``.
The paper's ablation RPP-pool (Table 8) replaces the GRU by the mean of the ranked items, which
does not depend on their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_sequence

from rpp.types import UNKNOWN, Ranking, Request

Pooling = Literal["gru", "mean"]
"""How the vectors of the ranked items are pooled into one."""


@dataclass(frozen=True)
class Observation:
    """Input of the state encoder after a step; no trained layer is involved.

    Attributes:
        prompts: Encodings of the prompts sent, ``(B, E)``.
        items: Vectors of the ranked items, best first, ``(B, M, I)``; zeros where the language
            model failed, for items without a vector, and behind shorter lists.
        n_items: Length of every list, ``(B,)``; ``None``: all have ``M``.
    """

    prompts: Tensor
    items: Tensor
    n_items: Tensor | None = None


class StateEncoder(nn.Module):
    """Encodes the user vector, or a prompt and its ranking, into a state.

    Args:
        item_vectors: Frozen collaborative item vectors, ``(n_items, I)``.
        prompt_dim: Width ``E`` of the prompt encodings.
        state_dim: Width ``D`` of the state.
        pooling: How a ranking becomes a vector: ``gru``, best item first, or a linear map of the
            items' ``mean``.
    """

    item_vectors: Tensor
    item_scale: Tensor

    def __init__(
        self,
        item_vectors: Tensor,
        prompt_dim: int,
        state_dim: int = 64,
        pooling: Pooling = "gru",
    ) -> None:
        super().__init__()
        self.register_buffer("item_vectors", item_vectors, persistent=False)
        self.user_norm = nn.LayerNorm(state_dim, elementwise_affine=False)
        self.projection = nn.Linear(prompt_dim, state_dim)
        self.prompt_norm = nn.LayerNorm(state_dim)
        self.pooling = pooling
        if pooling == "gru":
            self.gru = nn.GRU(item_vectors.shape[1], state_dim, batch_first=True)
        else:
            self.mean_map = nn.Linear(item_vectors.shape[1], state_dim)
        self.ranking_norm = nn.LayerNorm(state_dim)
        scale = item_vectors.std().clamp(min=1e-6)
        self.register_buffer("item_scale", 1 / scale, persistent=False)

    def initial(self, user_vectors: Tensor) -> Tensor:
        """The first state: the users' collaborative vectors ``(B, D)``, normalised (Eq. 3)."""
        normalised: Tensor = self.user_norm(user_vectors)
        return normalised

    def observe(
        self, encodings: Tensor, rankings: Sequence[Ranking], episodes: Sequence[Request]
    ) -> Observation:
        """Collect the input of the next state.

        Args:
            encodings: ``(B, E)``.
            rankings: ``B`` rankings.
            episodes: The ranked users; their lists may differ in length.
        """
        device = self.item_vectors.device
        ranked = [
            torch.tensor(
                [
                    episode.candidates[k].index
                    for k in ranking.order or range(len(episode.candidates))
                ]
            )
            for ranking, episode in zip(rankings, episodes, strict=True)
        ]
        rows = pad_sequence(ranked, batch_first=True, padding_value=UNKNOWN).to(device)
        failed = torch.tensor([ranking.failed for ranking in rankings], device=device)
        absent = (rows == UNKNOWN) | failed[:, None]
        items = self.item_vectors[rows.masked_fill(absent, 0)] * self.item_scale
        n_items = torch.tensor([len(each) for each in ranked])
        return Observation(
            encodings.to(device),
            items.masked_fill(absent[..., None], 0.0),
            None if (n_items == rows.shape[1]).all() else n_items,
        )

    def forward(self, observation: Observation) -> Tensor:
        """The state after a step, ``(B, D)`` (Eq. 4)."""
        prompt = self.prompt_norm(self.projection(observation.prompts))
        state: Tensor = prompt + self.ranking_norm(self._pooled(observation))
        return state

    def _pooled(self, observation: Observation) -> Tensor:
        """Every ranking as one vector, ``(B, D)``."""
        items, n_items = observation.items, observation.n_items
        if self.pooling == "mean":
            mean = items.mean(dim=1)
            if n_items is not None:
                mean = items.sum(dim=1) / n_items[:, None].to(items)
            pooled: Tensor = self.mean_map(mean)
            return pooled
        lists: Tensor | PackedSequence = items
        if n_items is not None:
            lists = pack_padded_sequence(items, n_items, batch_first=True, enforce_sorted=False)
        last: Tensor = self.gru(lists)[1][0]
        return last
