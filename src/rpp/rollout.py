"""Rollouts: a policy, a ranker and users give transitions (paper, Algorithm 1, lines 4 to 8).

Training, validation, test and every method that asks a language model play through here: a prompt
is sent by :meth:`Environment.step` and nowhere else, an episode is played by :func:`rollout`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from rpp.agents.state import Observation
from rpp.metrics import ndcg, target_ranks
from rpp.processes import ask_together
from rpp.prompts.compose import Prompt, compose
from rpp.prompts.patterns import Patterns
from rpp.prompts.refine import Refiner
from rpp.prompts.static import StaticPrompt
from rpp.ranker import Ranker
from rpp.types import Choice, Episode, Ranking

C = TypeVar("C", bound=Choice)

Policy = Callable[[Tensor, int, Sequence[Episode]], C]
"""From the state ``(B, D)``, the step from 0 and the users to a choice."""


@dataclass(frozen=True)
class Step:
    """One step of ``B`` episodes: what was chosen, sent and answered.

    Attributes:
        episodes: The users.
        actions: Index into each pattern's options, ``(B, P)``.
        lengths: History length of every prompt, ``l_t``.
        prompts: What was sent.
        rankings: What came back.
    """

    episodes: Sequence[Episode]
    actions: Tensor
    lengths: Sequence[int]
    prompts: Sequence[Prompt]
    rankings: Sequence[Ranking]

    def target_ranks(self, *, named_only: bool = False) -> Tensor:
        """Rank of every user's target, ``(B,)``, see :func:`rpp.metrics.target_ranks`.

        Raises:
            TargetAccessError: For test users outside the final scoring.
        """
        return target_ranks(self.rankings, self.episodes, named_only=named_only)

    def rewards(self) -> Tensor:
        """NDCG@M of every ranking, ``(B,)`` (paper Eq. 6); ``nan`` where the model failed.

        Raises:
            TargetAccessError: For test users outside the final scoring.
        """
        return ndcg(self.target_ranks(), len(self.episodes[0].candidates)).float()


@dataclass(frozen=True)
class Transition(Generic[C]):
    """A step and the states around it: what a learner learns from.

    Attributes:
        number: The step's number in its episode, from 0.
        state: In which the policy chose, ``(B, D)``.
        decision: What it chose.
        step: What was sent and answered.
        observation: What the next state is encoded from; ``None`` after the last step.
    """

    number: int
    state: Tensor
    decision: C
    step: Step
    observation: Observation | None

    @property
    def last(self) -> bool:
        """Whether the episode ends here."""
        return self.observation is None

    @property
    def log_prob(self) -> Tensor | None:
        """Log-probability of all actions of each user, ``(B,)``; ``None``: the choice has none."""
        log_prob: Tensor | None = getattr(self.decision, "log_prob", None)
        return None if log_prob is None else log_prob.detach().cpu().double().sum(dim=-1)


@dataclass(frozen=True)
class Environment:
    """What answers a choice: the options, the ranker, and for RPP+ the refiner of sentences."""

    patterns: Patterns
    ranker: Ranker
    refiner: Refiner | None = None

    def step(self, episodes: Sequence[Episode], actions: Tensor, lengths: Sequence[int]) -> Step:
        """Compose every user's prompt and rank.

        Args:
            episodes: ``B`` users; one may stand there several times.
            actions: ``(B, P)``.
            lengths: History length of every prompt.

        Raises:
            InputError: If a prompt does not fit the language model.
            LanguageModelError: If the model answered none of several prompts.
        """

        def ask() -> Step:
            prompts = compose(
                episodes, self.patterns, actions.tolist(), lengths, self.ranker.display,
                fits=self.ranker.fits, refine=self.refiner or str,
            )  # fmt: skip
            rankings = self.ranker.rank(prompts, episodes)
            return Step(episodes, actions, lengths, prompts, rankings)

        return ask_together(ask)

    def step_static(self, episodes: Sequence[Episode], prompts: Sequence[StaticPrompt]) -> Step:
        """Static prompts for every user: ``len(episodes) * len(prompts)``, user by user."""
        asked = [episode for episode in episodes for _ in prompts]
        actions = torch.tensor([prompt.actions for prompt in prompts]).repeat(len(episodes), 1)
        return self.step(asked, actions, [prompt.length for prompt in prompts] * len(episodes))

    @property
    def metadata(self) -> dict[str, str]:
        """What ranks, and who refines; by fingerprint."""
        refiner = {"refiner": self.refiner.fingerprint} if self.refiner else {}
        return self.ranker.settings | refiner


class States(Protocol):
    """Where the states of an episode come from (paper, section 3.3)."""

    def first_state(self, episodes: Sequence[Episode]) -> Tensor:
        """The state before the first prompt, ``(B, D)``."""

    def observe(self, step: Step) -> Observation:
        """What a step leaves behind."""

    def next_state(self, observation: Observation) -> Tensor:
        """The state after a step, ``(B, D)``."""


def rollout(
    environment: Environment,
    states: States,
    policy: Policy[C],
    episodes: Sequence[Episode],
    n_steps: int,
) -> Iterator[Transition[C]]:
    """Play one episode per user, step by step.

    The next state is encoded when the next transition is asked for. A learner that has updated
    the state encoder in between goes on from a state of the new encoder.

    Args:
        environment: Options and ranker.
        states: Encodes the states.
        policy: Chooses the actions.
        episodes: ``B`` users.
        n_steps: Steps ``T`` to play.
    """
    patterns = environment.patterns
    lengths = patterns.first_lengths(len(episodes))
    state = states.first_state(episodes)
    for number in range(n_steps):
        decision = policy(state, number, episodes)
        lengths = patterns.next_lengths(decision.actions.tolist(), lengths)
        step = environment.step(episodes, decision.actions, lengths)
        observation = states.observe(step) if number < n_steps - 1 else None
        yield Transition(number, state, decision, step, observation)
        if observation is not None:
            state = states.next_state(observation)


def uniforms(key: Sequence[int], episodes: Sequence[Episode], n_patterns: int) -> Tensor:
    """Numbers in [0, 1) that depend on the key and each episode alone, ``(B, P)``.

    Whoever else is in the batch, and in which order, changes no episode's draw; a resumed run
    draws the same. An episode that stands there several times has a generator that goes on.

    Args:
        key: What tells this draw from others, for example seed, epoch and step.
        episodes: ``B`` episodes.
        n_patterns: ``P``.
    """

    @cache
    def generator(*whose: int) -> np.random.Generator:
        return np.random.default_rng([*key, *whose])

    rows = [generator(*episode.key).random(n_patterns) for episode in episodes]
    return torch.from_numpy(np.stack(rows))
