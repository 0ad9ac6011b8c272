"""What every training user gets on a target anyway: running means of the rewards so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rpp.agents.losses import others_mean
from rpp.processes import all_reduce_sum
from rpp.types import Episode


class RewardLevels:
    """Sums of the rewards of each user and target, over all processes.

    Args:
        group_of: Number of every training episode by its key.
    """

    def __init__(self, group_of: Mapping[tuple[int, ...], int]) -> None:
        self.group_of = group_of
        self.sums = torch.zeros(2, len(group_of))
        """Sums of the rewards and their numbers."""

    def groups(self, episodes: Sequence[Episode]) -> Tensor:
        """Number of each episode among the training episodes, ``(B,)``."""
        return torch.tensor([self.group_of[each.key] for each in episodes])

    def baseline(self, rewards: Tensor, episodes: Sequence[Episode]) -> Tensor:
        """Mean of the rewards of all other draws of a user and target, ``(B,)``.

        Args:
            rewards: Of the running episodes up to now, ``(T, B)``.
            episodes: ``B`` users.
        """
        total, n_total = self.sums + self._sums_of(rewards, episodes)
        return others_mean(rewards, self.groups(episodes), total, n_total).nan_to_num(0)

    def add(self, rewards: Tensor, episodes: Sequence[Episode]) -> None:
        """Count finished episodes; rewards are ``(T, B)``."""
        self.sums += self._sums_of(rewards, episodes)

    def _sums_of(self, rewards: Tensor, episodes: Sequence[Episode]) -> Tensor:
        """Sums and numbers by group, over all processes, ``(2, G)``."""
        known = rewards.isfinite().sum(0).to(rewards)
        each = torch.stack([rewards.nan_to_num(0).sum(0), known])
        own = torch.zeros_like(self.sums).index_add(1, self.groups(episodes), each)
        return all_reduce_sum(own)
