"""RPP: four actors and four critics learn which prompt ranks best for each user.

The training step is the paper's Algorithm 1 with the corrected losses of ``rpp.agents.losses``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from rpp.agents.actor_critic import ActorCritic, Decision
from rpp.agents.losses import actor_loss, critic_loss, n_step_returns
from rpp.learners.base import EPOCH_MEAN
from rpp.learners.neural import NeuralLearner
from rpp.learners.policy import check_positive, check_smallest
from rpp.processes import all_reduce_mean
from rpp.rollout import Transition
from rpp.types import Episode


class RPP(NeuralLearner[Decision]):
    """Reinforced Prompt Personalization (paper, section 3).

    Args:
        n_step_return: Rewards in a return before the critic stands in for the rest. With 1 the
            agents update after every step (the paper); with more, at the end of the episode.
        actor_lr: Learning rate of the actors and the state encoder.
        critic_lr: Learning rate of the critics.
        learner: What :class:`rpp.learners.neural.NeuralLearner` takes.
    """

    def __init__(
        self,
        n_step_return: int = 1,
        actor_lr: float = 0.01,
        critic_lr: float = 0.01,
        **learner: Any,
    ) -> None:
        super().__init__(**learner)
        check_smallest(n_step_return=(n_step_return, 1))
        check_positive(actor_lr=actor_lr, critic_lr=critic_lr)
        self.n_step_return = n_step_return
        self.actor_lr = actor_lr
        self.critic_lr = critic_lr

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
        """Play one episode per user; with one-step returns, update all agents after every step."""
        pending: list[Transition[Decision]] = []
        for transition in self.rollout(batch, self.explore):  # encodes states after each update
            self.log_reward(transition)
            pending.append(transition)
            if transition.last or self.n_step_return == 1:
                self._update(pending)
                pending = []

    def _update(self, transitions: Sequence[Transition[Decision]]) -> None:
        """One gradient step of all agents and the state encoder on ``T'`` transitions."""
        decisions = [transition.decision for transition in transitions]
        returns = n_step_returns(
            torch.stack([each.step.rewards().to(self.device) for each in transitions]),
            torch.stack([self._next_value(each) for each in transitions]),
            self.discount,
            self.n_step_return,
        )
        values = torch.stack([decision.value for decision in decisions])
        log_prob = torch.stack([decision.log_prob for decision in decisions])
        entropy = torch.stack([decision.entropy for decision in decisions])
        actor = actor_loss(log_prob, returns - values.detach(), entropy, self.entropy_coef)
        critic = critic_loss(returns, values)
        n_known = int(returns[..., 0].isfinite().sum())
        self.descend(actor.sum() + self.value_coef * critic.sum(), n_known)
        self._log_losses(torch.stack([actor, critic]), n_known, entropy)

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
