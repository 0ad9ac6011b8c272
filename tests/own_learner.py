"""A learner that is not the project's: an epsilon-greedy mean reward for every option."""

from __future__ import annotations

import torch
from torch import Tensor

from rpp.learners.base import PromptLearner
from rpp.types import Choice, Episode


class MeanReward(PromptLearner[Choice]):
    """Chooses the option of every pattern with the highest mean reward so far.

    Args:
        epsilon: Share of options drawn at random while it learns.
        learner: What ``rpp.learners.base.PromptLearner`` takes.
    """

    def __init__(self, epsilon: float = 0.5, **learner: object) -> None:
        super().__init__(**learner)
        self.epsilon = epsilon
        n_actions = self.patterns.n_actions
        self.register_buffer("total", torch.zeros(len(n_actions), max(n_actions)))
        self.register_buffer("count", torch.zeros(len(n_actions), max(n_actions)))

    def act(
        self, state: Tensor, number: int, episodes: list[Episode], draws: Tensor | None
    ) -> Choice:
        best = (self.total / self.count.clamp(min=1)).argmax(1).repeat(len(episodes), 1)
        if draws is None:
            return Choice(best)
        n_actions = torch.tensor(self.patterns.n_actions)
        drawn = (draws / self.epsilon * n_actions).long()
        return Choice(torch.where(draws < self.epsilon, drawn, best))

    def training_step(self, batch: list[Episode], batch_idx: int) -> None:
        for transition in self.rollout(batch, self.explore):
            self.log_reward(transition)
            actions = transition.decision.actions.T  # (P, B)
            rewards = transition.step.rewards().expand(actions.shape)
            known = rewards.isfinite().float()  # a failed call is no reward of 0
            self.total.scatter_add_(1, actions, rewards.nan_to_num(0))
            self.count.scatter_add_(1, actions, known)
        self.count_update()
