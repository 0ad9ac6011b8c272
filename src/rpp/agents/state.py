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

from rpp.types import Episode, Ranking

Pooling = Literal["gru", "mean"]
"""How the vectors of the ranked items are pooled into one."""


@dataclass(frozen=True)
class Observation:
    """Input of the state encoder after a step; no trained layer is involved.

    Attributes:
        prompts: Encodings of the prompts sent, ``(B, E)``.
        items: Vectors of the ranked items, best first, ``(B, M, I)``; zeros where the language
            model failed.
    """

    prompts: Tensor
    items: Tensor


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
        self, encodings: Tensor, rankings: Sequence[Ranking], episodes: Sequence[Episode]
    ) -> Observation:
        """Collect the input of the next state.

        Args:
            encodings: ``(B, E)``.
            rankings: ``B`` rankings.
            episodes: The ranked users.
        """
        device = self.item_vectors.device
        rows = torch.tensor(
            [
                [
                    episode.candidates[k].index
                    for k in ranking.order or range(len(episode.candidates))
                ]
                for ranking, episode in zip(rankings, episodes, strict=True)
            ],
            device=device,
        )
        items = self.item_vectors[rows] * self.item_scale
        failed = torch.tensor([ranking.failed for ranking in rankings], device=device)
        return Observation(encodings.to(device), items.masked_fill(failed[:, None, None], 0.0))

    def forward(self, observation: Observation) -> Tensor:
        """The state after a step, ``(B, D)`` (Eq. 4)."""
        prompt = self.prompt_norm(self.projection(observation.prompts))
        if self.pooling == "gru":
            ranking = self.gru(observation.items)[1][0]
        else:
            ranking = self.mean_map(observation.items.mean(dim=1))
        state: Tensor = prompt + self.ranking_norm(ranking)
        return state
