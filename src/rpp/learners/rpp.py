"""RPP: four actors and four critics learn which prompt ranks best for each user.

The training step is the paper's Algorithm 1 with the corrected losses of ``rpp.agents.losses``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from rpp.agents.actor_critic import ActorCritic, Decision
from rpp.agents.losses import clipped_surrogate, critic_loss, n_step_returns
from rpp.learners.base import EPOCH_MEAN
from rpp.learners.checks import check_positive, check_smallest
from rpp.learners.levels import RewardLevels
from rpp.learners.neural import NeuralLearner
from rpp.processes import all_reduce_mean
from rpp.rollout import Transition
from rpp.types import Episode

LEVELS = "reward_levels"
"""Key of a checkpoint."""


class RPP(NeuralLearner[Decision]):
    """Reinforced Prompt Personalization (paper, section 3).

    Args:
        n_step_return: Rewards in a return before the critic stands in for the rest. With 1 the
            agents update after every step (the paper); with more, at the end of the episode.
        actor_lr: Learning rate of the actors and the state encoder.
        critic_lr: Learning rate of the critics.
        baseline: What a reward is compared with. ``user``: with the other rewards of the same user
            on the same target, so that the agents tell prompts apart and not users; the critics
            learn what is left. ``critic``: with the critic's value alone (the paper).
        n_draws: Episodes played at once for each training user and target.
        n_passes: Gradient steps on the same transitions, with PPO's clipped ratio (the paper: 1).
        clip_range: How far the ratio of new to old policy may move a loss.
        learner: What :class:`rpp.learners.neural.NeuralLearner` takes.
    """

    def __init__(
        self,
        n_step_return: int = 1,
        actor_lr: float = 0.01,
        critic_lr: float = 0.01,
        baseline: Literal["user", "critic"] = "user",
        n_draws: int = 1,
        n_passes: int = 1,
        clip_range: float = 0.2,
        **learner: Any,
    ) -> None:
        super().__init__(**learner)
        check_smallest(
            n_step_return=(n_step_return, 1), n_draws=(n_draws, 1), n_passes=(n_passes, 1)
        )
        check_positive(actor_lr=actor_lr, critic_lr=critic_lr, clip_range=clip_range)
        self.n_step_return = n_step_return
        self.actor_lr = actor_lr
        self.critic_lr = critic_lr
        self.baseline = baseline
        self.n_draws = n_draws
        self.n_passes = n_passes
        self.clip_range = clip_range
        self.levels: RewardLevels | None = None

    def build_agents(self, state_dim: int) -> None:
        """One actor and one critic per pattern."""
        self.agents = ActorCritic(self.patterns.n_actions, state_dim, self.hidden_dim)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One Adam for actors and state encoder, one for critics."""
        actors = [*self.agents.actors.parameters(), *self.states.parameters()]
        return [
            torch.optim.Adam(actors, lr=self.actor_lr),
            torch.optim.Adam(self.agents.critics.parameters(), lr=self.critic_lr),
        ]

    def act(
        self, state: Tensor, number: int, episodes: Sequence[Episode], draws: Tensor | None
    ) -> Decision:
        """Every agent chooses an option of its pattern."""
        decision: Decision = self.agents(state, draws, self.horizon(number))
        return self.checked(decision)

    def probabilities(self, state: Tensor, number: int, episodes: Sequence[Episode]) -> Tensor:
        """The actors' policies, ``(B, P, A)``."""
        return self.agents.log_probs(state).exp()

    @property
    def learning_rates(self) -> tuple[float, float]:
        """Of actors and state encoder, and of critics."""
        return self.actor_lr, self.critic_lr

    # -- Algorithm 1 -------------------------------------------------------------------------

    def training_step(self, batch: list[Episode], batch_idx: int) -> None:
        """Play some episodes per user; with one-step returns, update all agents every step."""
        drawn = [episode for episode in batch for _ in range(self.n_draws)]
        rewards: list[Tensor] = []
        pending: list[Transition[Decision]] = []
        for transition in self.rollout(drawn, self.explore):  # encodes states after each update
            self.log_reward(transition)
            rewards.append(transition.step.rewards())
            pending.append(transition)
            if transition.last or self.n_step_return == 1:
                self._update(pending, self._baseline(rewards, drawn))
                pending = []
        if self.levels is not None:
            self.levels.add(torch.stack(rewards), drawn)

    def _baseline(self, rewards: Sequence[Tensor], episodes: Sequence[Episode]) -> Tensor:
        """What the users get anyway, ``(B,)``; 0 where the critics alone have to know."""
        if self.levels is None:
            return torch.zeros(len(episodes))
        return self.levels.baseline(torch.stack([*rewards]), episodes)

    def _update(self, transitions: Sequence[Transition[Decision]], baseline: Tensor) -> None:
        """Gradient steps of all agents and the state encoder on ``T'`` transitions."""
        rewards = torch.stack([each.step.rewards() - baseline for each in transitions])
        returns = n_step_returns(
            rewards.to(self.device),
            torch.stack([self._next_value(each) for each in transitions]),
            self.discount,
            self.n_step_return,
        )
        old_values, old_log_prob = (
            torch.stack([getattr(each.decision, name) for each in transitions]).detach()
            for name in ("value", "log_prob")
        )
        for _ in range(self.n_passes):
            self._descend(transitions, returns, returns - old_values, old_log_prob)

    def _descend(
        self,
        transitions: Sequence[Transition[Decision]],
        returns: Tensor,
        advantage: Tensor,
        old_log_prob: Tensor,
    ) -> None:
        """One gradient step; all tensors are ``(T', B, P)``."""
        decisions = [self._decide_again(each) for each in transitions]
        values, log_prob, entropy = (
            torch.stack([getattr(each, name) for each in decisions])
            for name in ("value", "log_prob", "entropy")
        )
        actor = clipped_surrogate(
            log_prob, old_log_prob, advantage, entropy, self.clip_range, self.entropy_coef
        )
        critic = critic_loss(returns, values)
        n_known = int(returns[..., 0].isfinite().sum())
        self.descend(actor.sum() + self.value_coef * critic.sum(), n_known)
        self._log_losses(torch.stack([actor, critic]), n_known, entropy)

    def _decide_again(self, transition: Transition[Decision]) -> Decision:
        """What the agents of now make of the choices of then."""
        decision: Decision = self.agents(
            self.state_again(transition),
            horizon=self.horizon(transition.number),
            actions=transition.decision.actions,
        )
        return self.checked(decision)

    @torch.no_grad()
    def _next_value(self, transition: Transition[Decision]) -> Tensor:
        """Values of the state reached, ``(B, P)``; 0 after the last step."""
        if transition.observation is None:
            return torch.zeros_like(transition.decision.value)
        reached = self.next_state(transition.observation)
        return self.agents.value(reached, self.horizon(transition.number + 1))

    def _log_losses(self, losses: Tensor, n_known: int, entropy: Tensor) -> None:
        """Log loss and entropy of every agent.

        Args:
            losses: Of actors and critics, ``(2, P)``.
            n_known: Entries they are means of.
            entropy: ``(T', B, P)``.
        """
        losses = all_reduce_mean(losses, n_known)
        entropies = all_reduce_mean(entropy.mean((0, 1)), entropy[..., 0].numel())
        logged = {}
        for k, name in enumerate(self.patterns.names):
            logged[f"loss/actor_{name}"] = losses[0, k]
            logged[f"loss/critic_{name}"] = losses[1, k]
            logged[f"entropy/{name}"] = entropies[k]
        self.log_dict(logged, **EPOCH_MEAN, batch_size=1)

    # -- levels ------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Begin the running means of the training users' rewards, unless a checkpoint had them."""
        super().on_train_start()
        if self.baseline == "user" and self.levels is None:
            self.levels = RewardLevels(self.data.train_groups)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """With the levels."""
        super().on_save_checkpoint(checkpoint)
        if self.levels is not None:
            checkpoint[LEVELS] = self.levels.sums.tolist()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """With the levels, if a fit goes on."""
        super().on_load_checkpoint(checkpoint)
        if LEVELS in checkpoint and self.baseline == "user" and self.trainer.state.fn == "fit":
            self.levels = RewardLevels(self.data.train_groups)
            self.levels.sums = torch.tensor(checkpoint[LEVELS])
