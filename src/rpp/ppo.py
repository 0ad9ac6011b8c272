"""PPO-1 and PPO-4: one PPO agent in the place of RPP's four (paper, Figure 6a)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from rpp.agents.losses import clipped_surrogate, critic_loss, gae, horizon, normalised
from rpp.agents.ppo import JointActorCritic, JointDecision, draw_prompts
from rpp.module import EPOCH_MEAN, RPPModule
from rpp.processes import gather_rows, means
from rpp.types import Episode, InputError


class PPOModule(RPPModule):
    """One agent chooses all patterns jointly (PPO-4), or a whole prompt (PPO-1).

    It plays the episodes of a batch to their end with one policy, then learns from them several
    times over; states, prompts, rewards and calls to the language model are those of RPP.

    Args:
        n_prompts: PPO-1: one head chooses among so many whole prompts, drawn by ``policy_seed``.
            ``null``: PPO-4, a head for every pattern.
        lr: Learning rate of the agent and the state encoder.
        n_update_epochs: Gradient steps on a batch of episodes.
        clip: How far the ratio of new to old policy may move a loss.
        trace: Lambda of the generalised advantage estimates.
        rpp: What :class:`rpp.module.RPPModule` takes, but ``actor_lr``, ``critic_lr`` and
            ``n_step_return``.

    Raises:
        InputError: If there are fewer than two prompts to choose from, or nothing would be learnt.
    """

    def __init__(
        self,
        n_prompts: int | None = None,
        lr: float = 0.001,
        n_update_epochs: int = 4,
        clip: float = 0.2,
        trace: float = 0.95,
        **rpp: Any,
    ) -> None:
        super().__init__(actor_lr=lr, critic_lr=lr, n_step_return=1, **rpp)
        if n_prompts is not None and n_prompts < 2:
            raise InputError(f"n_prompts is {n_prompts}: give 2 or more, or null for PPO-4")
        if n_update_epochs < 1:
            raise InputError(f"n_update_epochs is {n_update_epochs}: give 1 or more")
        if clip <= 0:
            raise InputError(f"clip is {clip}: give a number above 0, such as 0.2")
        self.n_prompts = n_prompts
        self.lr = lr
        self.n_update_epochs = n_update_epochs
        self.clip = clip
        self.trace = trace

    @property
    def learner(self) -> str:
        """Tells PPO-1 and PPO-4 apart."""
        return "PPO-4" if self.n_prompts is None else f"PPO-1 of {self.n_prompts} prompts"

    def make_agents(self, state_dim: int) -> JointActorCritic:
        """The one agent."""
        n_actions = self.patterns.n_actions
        prompts = None
        if self.n_prompts is not None:
            prompts = draw_prompts(n_actions, self.n_prompts, self.policy_seed)
        return JointActorCritic(n_actions, state_dim, self.hidden_dim, prompts)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One Adam for everything."""
        return torch.optim.Adam([*self.agents.parameters(), *self.states.parameters()], lr=self.lr)

    def training_step(self, batch: list[Episode], batch_idx: int) -> None:
        """Play one episode per user to its end, then update."""
        played: list[JointDecision] = []

        def choose(state: Tensor, step: int, episodes: Sequence[Episode]) -> Tensor:
            draws = self._draws((self.policy_seed, self.current_epoch, step), episodes)
            decision: JointDecision = self.agents(state, draws, self._horizon(step))
            played.append(decision)
            return decision.actions

        turns = self.play(batch, choose, self.n_steps)
        rewards = [self._reward(turn) for turn in turns]
        for step, (turn, reward) in enumerate(zip(turns, rewards, strict=True)):
            self._log_turn(step, turn, reward)
        observations = [self._observe(turn) for turn in turns[:-1]]
        first = self.states.initial(self._user_vectors(batch))
        values = torch.stack([decision.value for decision in played])
        advantage = gae(torch.stack(rewards), values, self.discount, self.trace)
        everyone = gather_rows(advantage.transpose(0, 1)).transpose(0, 1)
        scaled = normalised(advantage, everyone)
        for _ in range(self.n_update_epochs):
            states = [first, *map(self.states, observations)]  # again: the encoder learns as well
            self._update_jointly(states, played, advantage + values, scaled)

    def _horizon(self, step: int) -> float:
        return horizon(self.n_steps - step, self.discount)

    def _update_jointly(
        self,
        states: Sequence[Tensor],
        played: Sequence[JointDecision],
        returns: Tensor,
        advantage: Tensor,
    ) -> None:
        """One gradient step of agent and state encoder on ``T`` steps of ``B`` episodes.

        Args:
            states: ``T`` tensors ``(B, D)``.
            played: What was chosen in them.
            returns: What the critic should have predicted, ``(T, B, 1)``.
            advantage: ``(T, B, 1)``.
        """
        decisions = [
            self.agents(state, horizon=self._horizon(step), choices=decision.choices)
            for step, (state, decision) in enumerate(zip(states, played, strict=True))
        ]
        entropy = torch.stack([decision.entropy for decision in decisions])
        actor = clipped_surrogate(
            torch.stack([decision.log_prob for decision in decisions]),
            torch.stack([decision.log_prob for decision in played]),
            advantage,
            entropy.sum(dim=-1, keepdim=True),
            self.clip,
            self.entropy_coef,
        )
        critic = critic_loss(returns, torch.stack([decision.value for decision in decisions]))
        optimizer = self.optimizers()
        optimizer.zero_grad()  # type: ignore[union-attr]
        n_known = int(returns.isfinite().sum())
        self._backward((actor + self.value_coef * critic).sum(), n_known)
        self.clip_gradients(optimizer, self.max_grad_norm, "norm")  # type: ignore[arg-type]
        optimizer.step()  # type: ignore[union-attr]
        heads = self.patterns.names if self.n_prompts is None else ("prompt",)
        losses = means(torch.cat([actor, critic]), n_known)
        entropies = means(entropy.mean((0, 1)), entropy[..., 0].numel())
        logged = {"loss/actor": losses[0], "loss/critic": losses[1]}
        logged |= {f"entropy/{name}": entropies[k] for k, name in enumerate(heads)}
        self.log_dict(logged, **EPOCH_MEAN, batch_size=1)
