"""PPO-1 and PPO-4: one PPO agent in the place of RPP's four (paper, Figure 6a)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from rpp.agents.joint import JointActorCritic, JointDecision, draw_prompts
from rpp.agents.losses import (
    approx_kl,
    clip_fraction,
    clipped_surrogate,
    critic_loss,
    explained_variance,
    gae,
    normalised,
)
from rpp.learners.base import EPOCH_MEAN
from rpp.learners.checks import check_fraction, check_positive, check_smallest
from rpp.learners.neural import NeuralLearner
from rpp.processes import all_reduce_mean, gather_rows
from rpp.rollout import Transition
from rpp.types import Episode, InputError


class PPO(NeuralLearner[JointDecision]):
    """One agent chooses all patterns jointly (PPO-4), or a whole prompt (PPO-1).

    It plays the episodes of a batch to their end with one policy, then learns from them in
    several passes. States, prompts, rewards and calls to the language model are those of RPP.

    Args:
        n_prompts: PPO-1: one head chooses among so many whole prompts, drawn by ``policy_seed``.
            ``null``: PPO-4, a head for every pattern.
        lr: Learning rate of the agent and the state encoder.
        n_update_epochs: Gradient steps on a batch of episodes.
        clip_range: How far the ratio of new to old policy may move a loss.
        gae_lambda: Lambda of the generalised advantage estimates.
        learner: What :class:`rpp.learners.neural.NeuralLearner` takes.

    Raises:
        InputError: If there are fewer than two prompts to choose from, or nothing would be learnt.
    """

    def __init__(
        self,
        n_prompts: int | None = None,
        lr: float = 0.001,
        n_update_epochs: int = 4,
        clip_range: float = 0.2,
        gae_lambda: float = 0.95,
        **learner: Any,
    ) -> None:
        super().__init__(**learner)
        check_positive(lr=lr, clip_range=clip_range)
        check_smallest(n_update_epochs=(n_update_epochs, 1))
        check_fraction(gae_lambda=gae_lambda)
        if n_prompts is not None and n_prompts < 2:
            raise InputError(f"n_prompts is {n_prompts}: give 2 or more, or null for PPO-4")
        self.n_prompts = n_prompts
        self.lr = lr
        self.n_update_epochs = n_update_epochs
        self.clip_range = clip_range
        self.gae_lambda = gae_lambda

    @property
    def title(self) -> str:
        """Tells PPO-1 and PPO-4 apart."""
        return "PPO-4" if self.n_prompts is None else f"PPO-1 of {self.n_prompts} prompts"

    def build_agents(self, state_dim: int) -> None:
        """The one agent."""
        n_actions = self.patterns.n_actions
        prompts = None
        if self.n_prompts is not None:
            prompts = draw_prompts(n_actions, self.n_prompts, self.policy_seed)
        self.agents = JointActorCritic(n_actions, state_dim, self.hidden_dim, prompts)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One Adam for everything."""
        return torch.optim.Adam([*self.agents.parameters(), *self.states.parameters()], lr=self.lr)

    def act(
        self, state: Tensor, number: int, episodes: Sequence[Episode], draws: Tensor | None
    ) -> JointDecision:
        """The agent chooses all options at once."""
        decision: JointDecision = self.agents(state, draws, self.horizon(number))
        return self.checked(decision)

    def probabilities(self, state: Tensor, number: int, episodes: Sequence[Episode]) -> Tensor:
        """The agent's policy by pattern, ``(B, P, A)``; PPO-1: the marginals of whole prompts."""
        return self.agents.marginals(state, self.patterns.n_actions)

    @property
    def learning_rates(self) -> tuple[float]:
        """That of everything."""
        return (self.lr,)

    def training_step(self, batch: list[Episode], batch_idx: int) -> None:
        """Play one episode per user to its end, then update."""
        with torch.no_grad():
            played = [*self.rollout(batch, self.explore)]
        for transition in played:
            self.log_reward(transition)
        rewards = torch.stack([each.step.rewards().to(self.device) for each in played])
        values = torch.stack([each.decision.value for each in played])
        advantage = gae(rewards, values, self.discount, self.gae_lambda)
        returns = advantage + values
        everyone = gather_rows(advantage.transpose(0, 1)).transpose(0, 1)
        scaled = normalised(advantage, everyone)
        for _ in range(self.n_update_epochs):
            self._update(played, returns, scaled)
        explained = explained_variance(
            gather_rows(values.flatten(0, 1)), gather_rows(returns.flatten(0, 1))
        )
        self.log("train/explained_variance", explained, **EPOCH_MEAN, batch_size=1)

    def _update(
        self, played: Sequence[Transition[JointDecision]], returns: Tensor, advantage: Tensor
    ) -> None:
        """One gradient step of agent and state encoder on ``T`` steps of ``B`` episodes.

        Args:
            played: The ``T`` transitions.
            returns: What the critic should have predicted, ``(T, B, 1)``.
            advantage: ``(T, B, 1)``.
        """
        decisions = self._decide_again(played)
        entropy = torch.stack([decision.entropy for decision in decisions])
        log_prob = torch.stack([decision.log_prob for decision in decisions])
        old_log_prob = torch.stack([each.decision.log_prob for each in played])
        actor = clipped_surrogate(
            log_prob,
            old_log_prob,
            advantage,
            entropy.sum(dim=-1, keepdim=True),
            self.clip_range,
            self.entropy_coef,
        )
        critic = critic_loss(returns, torch.stack([decision.value for decision in decisions]))
        n_known = int(returns.isfinite().sum())
        self.descend((actor + self.value_coef * critic).sum(), n_known)
        ratio = log_prob.detach() - old_log_prob
        known = returns.isfinite()
        drift = [approx_kl(ratio, known), clip_fraction(ratio, known, self.clip_range)]
        self._log_update(torch.cat([actor, critic, *drift]), n_known, entropy)

    def _decide_again(self, played: Sequence[Transition[JointDecision]]) -> list[JointDecision]:
        """What the agent of now makes of the states and choices of then."""
        return [
            self.agents(
                self.state_again(each),
                horizon=self.horizon(each.number),
                choices=each.decision.choices,
            )
            for each in played
        ]

    def _log_update(self, means: Tensor, n_known: int, entropy: Tensor) -> None:
        """Log losses, how far the policy has moved, and the entropy of every head.

        Args:
            means: Losses of actor and critic, approximate KL divergence, clip fraction; ``(4,)``.
            n_known: Entries they are means of.
            entropy: ``(T, B, H)``.
        """
        heads = self.patterns.names if self.n_prompts is None else ("prompt",)
        names = ("loss/actor", "loss/critic", "train/approx_kl", "train/clip_fraction")
        logged = dict(zip(names, all_reduce_mean(means, n_known), strict=True))
        entropies = all_reduce_mean(entropy.mean((0, 1)), entropy[..., 0].numel())
        logged |= {f"entropy/{name}": entropies[k] for k, name in enumerate(heads)}
        self.log_dict(logged, **EPOCH_MEAN, batch_size=1)
