"""Learners whose policy is a neural network over the shared state (paper, section 3.3)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal, TypeVar

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from rpp.agents.actor_critic import Decision
from rpp.agents.joint import JointDecision
from rpp.agents.losses import horizon
from rpp.agents.state import Observation, Pooling, StateEncoder
from rpp.data.datamodule import EpisodeDataModule
from rpp.encoders import encode_parts, shared_encoder
from rpp.learners.base import PromptLearner
from rpp.learners.checks import check_fraction, check_positive, check_smallest
from rpp.learners.encodings import recall_titles
from rpp.processes import average_gradients
from rpp.rollout import Step, Transition
from rpp.types import Episode, InputError

D = TypeVar("D", Decision, JointDecision)


DIVERGED = (
    "training has diverged. Lower the learning rates (model.init_args); the checkpoints of the"
    " epochs before are whole"
)


class NeuralLearner(PromptLearner[D]):
    """Actors and critics on the shared state, with manual optimisation.

    Args:
        discount: How much a later reward counts; the paper uses 0.95.
        entropy_coef: Weight of the entropy bonus.
        value_coef: Weight of the critics' loss.
        max_grad_norm: Gradients are clipped to this norm.
        hidden_dim: Width of the hidden layers.
        prompt_encoder: ``minilm-l6`` (embedded), a local folder, or a hub id such as the paper's
            ``bert-base-uncased``.
        prompt_encoding: ``whole``: the prompt as one text (the paper), which takes a CPU longer
            than all the rest of the learning. ``parts``: the mean over the encodings of a prompt's
            sentences and titles, each of which is encoded once.
        pooling: What tells the agents the ranking: a ``gru``, or the ``mean`` of its items, which
            does not know their order (the paper's ablation RPP-pool, Table 8).
        learner: What :class:`rpp.learners.base.PromptLearner` takes.
    """

    def __init__(
        self,
        discount: float = 0.95,
        entropy_coef: float = 0.01,
        value_coef: float = 0.5,
        max_grad_norm: float = 1.0,
        hidden_dim: int = 64,
        prompt_encoder: str = "minilm-l6",
        prompt_encoding: Literal["parts", "whole"] = "whole",
        pooling: Pooling = "gru",
        **learner: Any,
    ) -> None:
        super().__init__(**learner)
        check_smallest(hidden_dim=(hidden_dim, 1))
        check_positive(max_grad_norm=max_grad_norm)
        for name, weight in (("entropy_coef", entropy_coef), ("value_coef", value_coef)):
            if not 0 <= weight < math.inf:
                raise InputError(f"model.{name} is {weight}: give 0 or more")
        check_fraction(discount=discount)
        self.discount = discount
        self.entropy_coef = entropy_coef
        self.value_coef = value_coef
        self.max_grad_norm = max_grad_norm
        self.hidden_dim = hidden_dim
        self.encoder = shared_encoder(prompt_encoder)
        self.prompt_encoding = prompt_encoding
        self.pooling: Pooling = pooling

    # -- states ------------------------------------------------------------------------------

    def build(self, data: EpisodeDataModule, device: torch.device) -> None:
        """Make the policy; titles that an earlier process encoded are known."""
        super().build(data, device)
        if self.prompt_encoding == "parts" and self.n_steps > 1:
            titles = [item.title for item in data.catalogue]
            recall_titles(self.encoder, data.folder, titles)

    def build_policy(self, device: torch.device) -> None:
        """Make state encoder and agents."""
        if device.type != "cpu":
            self.encoder.place(device)
        dim = self.vectors.dim
        self.states = StateEncoder(self.vectors.items, self.encoder.dim, dim, self.pooling)
        self.build_agents(dim)

    @abstractmethod
    def build_agents(self, state_dim: int) -> None:
        """Make the agents, which read states of the given width."""

    def first_state(self, episodes: Sequence[Episode]) -> Tensor:
        """The users' collaborative vectors, normalised (Eq. 3)."""
        return self.states.initial(super().first_state(episodes))

    def observe(self, step: Step) -> Observation:
        """Encodings of the prompts and vectors of the ranked items."""
        if self.prompt_encoding == "parts":
            encodings = encode_parts(self.encoder, [prompt.parts for prompt in step.prompts])
        else:
            encodings = self.encoder([prompt.text for prompt in step.prompts])
        return self.states.observe(encodings, step.rankings, step.episodes)

    def next_state(self, observation: Observation) -> Tensor:
        """Prompt and ranking, encoded (Eq. 4)."""
        state: Tensor = self.states(observation)
        return state

    def state_again(self, transition: Transition[D]) -> Tensor:
        """The state of a transition by the state encoder of now, ``(B, D)``: it learns as well."""
        before = transition.before
        return transition.state if before is None else self.next_state(before)

    def checked(self, decision: D) -> D:
        """Refuse a policy that has diverged.

        Raises:
            InputError: If a probability or a value is not finite.
        """
        if not (decision.log_prob.isfinite().all() and decision.value.isfinite().all()):
            raise InputError(f"the agents' values are not finite: {DIVERGED}")
        return decision

    # -- updates -----------------------------------------------------------------------------

    def horizon(self, number: int) -> float:
        """Discounted number of rewards still to come at a step, from 0."""
        return horizon(self.n_steps - number, self.discount)

    @property
    @abstractmethod
    def learning_rates(self) -> tuple[float, ...]:
        """Learning rate of every optimizer, in their order."""

    def on_train_start(self) -> None:
        """Use the learning rates asked for: a resumed run's optimizers bring those of before."""
        super().on_train_start()
        for optimizer, lr in zip(self._optimizers(), self.learning_rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr

    def _optimizers(self) -> list[LightningOptimizer]:
        chosen = self.optimizers()
        return chosen if isinstance(chosen, list) else [chosen]

    def descend(self, loss: Tensor, n: int) -> None:
        """One gradient step of every optimizer.

        DDP itself would count processes equally that have unequal numbers of users or failed
        calls, and wants a gradient of every weight; the state encoder has none in the first step.

        Args:
            loss: A mean over the entries of this process.
            n: Number of these entries.

        Raises:
            InputError: If the loss is not finite.
        """
        if not loss.isfinite():
            raise InputError(f"the loss is {float(loss)}: {DIVERGED}")
        optimizers = self._optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        strategy = self.trainer.strategy
        own = strategy.block_backward_sync() if isinstance(strategy, DDPStrategy) else nullcontext()
        with own:
            self.manual_backward(loss)
        average_gradients(self.parameters(), n)
        for optimizer in optimizers:
            self.clip_gradients(optimizer, self.max_grad_norm, "norm")  # type: ignore[arg-type]
            optimizer.step()

    # -- provenance --------------------------------------------------------------------------

    @property
    def provenance(self) -> dict[str, str]:
        """With the encoding of prompts and rankings."""
        return super().provenance | {
            "prompt encoder": self.encoder.model,
            "prompt encoding": self.prompt_encoding,
            "pooling": self.pooling,
        }
