"""The best prompt by a model of the reward, fitted to every reward that was ever paid for.

One step, one call: the prompt depends on what is known of the user at request time. The agents of
:class:`rpp.learners.rpp.RPP` learn from a reward once and tell neither what a user gets anyway from
what a prompt adds, nor one pattern's part from another's. This learner does both in closed form, so
it needs fewer calls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.nn import functional

from rpp.agents.reward_model import LoggedRewards, RewardModel
from rpp.evaluation import random_actions
from rpp.learners.base import EPOCH_MEAN, PromptLearner
from rpp.learners.checks import check_smallest
from rpp.processes import gather_rows
from rpp.rewards import environment_fingerprint, read_rewards
from rpp.types import Choice, Episode, InputError

MAX_PROMPTS = 100_000
"""Prompts that are compared one by one where pairs of options have effects of their own."""

LARGEST = 3.0
"""Features, in standard deviations, are clipped here: few users are as far from the mean."""

USUAL_LENGTH = 30
"""A history of so many interactions is neither short nor long."""

N_POSTERIOR = 200
"""Draws from the posterior behind the probabilities of the options."""

LOGGED = "logged_rewards"
"""Key of a checkpoint."""


@dataclass(frozen=True)
class UniformChoice(Choice):
    """Options drawn at random.

    Attributes:
        log_prob: Log-probability of the whole prompt, ``(B, 1)``.
    """

    log_prob: Tensor


class RewardModelLearner(PromptLearner[Choice]):
    """Learns from logged rewards; the policy is the best prompt by the model.

    Args:
        n_draws: Prompts asked in an epoch for each training user and target.
        exploration: How they are chosen. ``uniform``: at random, which tells most of all prompts.
            ``thompson``: after the first epoch, each the best by a draw from the posterior, which
            asks good prompts more often and so tells those apart.
        personal: Whether options have effects for users like this one, besides those for everyone.
        pairs: Whether pairs of options of two patterns have effects of their own.
        n_factors: Principal components of the collaborative vectors that stand for a user.
        reward_log: Parquet file of an earlier fit of any learner, see :mod:`rpp.rewards`, whose
            rewards are learnt from as well: those of these patterns and this environment, for
            training users. With it ``n_draws`` may be 0, and nothing is asked.
        n_steps: Steps of an episode: 1.
        learner: What :class:`rpp.learners.base.PromptLearner` takes.
    """

    centre: Tensor
    factors: Tensor

    def __init__(
        self,
        n_draws: int = 2,
        exploration: Literal["uniform", "thompson"] = "thompson",
        personal: bool = True,
        pairs: bool = False,
        n_factors: int = 8,
        reward_log: str | None = None,
        n_steps: int = 1,
        **learner: Any,
    ) -> None:
        super().__init__(n_steps=n_steps, **learner)
        if n_steps != 1:
            raise InputError(
                f"model.n_steps is {n_steps}, but this learner knows a user's best prompt in one"
                " step: set it to 1, or take conf/actor_critic.yaml"
            )
        least = 1 if reward_log is None else 0
        check_smallest(n_draws=(n_draws, least), n_factors=(n_factors, 1))
        if not self.patterns.history.lengths:
            raise InputError(
                "one step reaches every history length only if lengths are absolute: set"
                " model.history_lengths, for example to [1, 4, 10, 20]"
            )
        n_prompts = prod(self.patterns.n_actions)
        if pairs and n_prompts > MAX_PROMPTS:
            raise InputError(
                f"model.pairs compares all {n_prompts:,} prompts: set it to false, or give"
                f" fewer options, so that there are {MAX_PROMPTS:,} at most"
            )
        self.n_draws = n_draws
        self.exploration = exploration
        self.personal = personal
        self.pairs = pairs
        self.n_factors = n_factors
        self.reward_log = reward_log
        self.logged: LoggedRewards | None = None
        self.n_epochs_logged = 0  # of the reward log, whose prompts are not drawn again
        self._fresh: list[Tensor] = []  # rows of the running epoch, of this process alone

    @property
    def title(self) -> str:
        """Names the model in tables."""
        return "RPP, reward model" if self.personal else "RPP, reward model, common"

    def build_policy(self, device: torch.device) -> None:
        """Make the features of a user and the model."""
        self.logged = None
        users = self.vectors.users
        known = users[users.any(dim=1)].double()
        n_factors = min(self.n_factors, *known.shape)
        centre = known.mean(dim=0)
        _, spread, directions = torch.linalg.svd(known - centre, full_matrices=False)
        scale = len(known) ** 0.5 / spread[:n_factors].clamp(min=1e-9)
        self.register_buffer("centre", centre.float())
        self.register_buffer("factors", (directions[:n_factors].T * scale).float())
        n_features = n_factors + 1 if self.personal else 0
        self.model = RewardModel(self.patterns.n_actions, n_features, pairs=self.pairs)

    # -- policy ------------------------------------------------------------------------------

    def features(self, state: Tensor, episodes: Sequence[Episode]) -> Tensor:
        """What is known of the users, about standard normal each, ``(B, Q)``.

        The principal components of the collaborative vector and the logarithm of the history's
        length.

        Args:
            state: Collaborative vectors, ``(B, D)``.
            episodes: ``B`` users.
        """
        if not self.personal:
            return state.new_zeros(len(episodes), 0)
        factors = (state - self.centre) @ self.factors
        lengths = state.new_tensor([[len(episode.history)] for episode in episodes])
        return torch.cat([factors, (lengths / USUAL_LENGTH).log()], dim=1).clamp(-LARGEST, LARGEST)

    def act(
        self, state: Tensor, number: int, episodes: Sequence[Episode], draws: Tensor | None
    ) -> Choice:
        """The best prompt by the model, or by a draw from its posterior."""
        normals = None if draws is None else self._normals(draws)
        return Choice(self.model.best(self.features(state, episodes), normals))

    def _normals(self, draws: Tensor) -> Tensor:
        """Standard normal numbers ``(B, F)`` that depend on a user's own draws alone."""
        keys = (draws * 2**53).long().tolist()
        n_effects = len(self.model.mean)
        return torch.tensor(
            np.stack([np.random.default_rng(key).standard_normal(n_effects) for key in keys])
        )

    def probabilities(self, state: Tensor, number: int, episodes: Sequence[Episode]) -> Tensor:
        """Probability that an option is in the best prompt, by the posterior; ``(B, P, A)``."""
        features = self.features(state, episodes)
        normals = _posterior_normals(len(self.model.mean), self.policy_seed)
        chosen = self.model.best_by_draws(features, normals)
        n_most = max(self.patterns.n_actions)
        return functional.one_hot(chosen, n_most).float().mean(dim=0)

    def explore(self, state: Tensor, number: int, episodes: Sequence[Episode]) -> Choice:
        """Prompts to learn from: uniform, or by Thompson sampling."""
        if self.exploration == "thompson" and self.logged is not None:
            return super().explore(state, number, episodes)
        draws = self.draws(self.current_epoch + self.n_epochs_logged, number, episodes)
        n_actions = self.patterns.n_actions
        log_prob = torch.full((len(episodes), 1), -math.log(prod(n_actions)), dtype=torch.float64)
        return UniformChoice(random_actions(n_actions, draws).to(state.device), log_prob)

    # -- learning ----------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        """Forget the rows of the last epoch, which are among the logged rewards."""
        super().on_train_epoch_start()
        self._fresh = []

    @torch.no_grad()
    def training_step(self, batch: list[Episode], batch_idx: int) -> None:
        """Ask some prompts of every user; after the epoch's last users, fit the model."""
        repeated = [episode for episode in batch for _ in range(self.n_draws)]
        for transition in self.rollout(repeated, self.explore) if repeated else ():
            self.log_reward(transition)
            step = transition.step
            self._fresh.append(
                self._rows(step.actions, transition.state, step.episodes, step.rewards())
            )
        if self.trainer.is_last_batch:
            self._learn()
        self.count_update()

    def _learn(self) -> None:
        """Fit the model to the rewards of all epochs and processes."""
        if self._fresh:
            self._add(gather_rows(torch.cat(self._fresh)))
        if self.logged is not None:
            self.model.fit(self.logged)
            self._log_deviations()

    def _add(self, rows: Tensor) -> None:
        """Add rewards to those that are learnt from; failed calls are left out."""
        rows = rows[rows[:, -1].isfinite()]
        if self.logged is not None:
            rows = torch.cat([self._rows_of_logged(self.logged), rows])
        if not len(rows):
            return
        n_patterns = len(self.patterns.names)
        self.logged = LoggedRewards(
            actions=rows[:, :n_patterns].long(),
            features=rows[:, n_patterns:-2],
            groups=rows[:, -2].long(),
            rewards=rows[:, -1],
        )

    def on_train_start(self) -> None:
        """Read the reward log, unless a run is resumed, whose checkpoint has the rewards."""
        super().on_train_start()
        if self.reward_log is None or self.logged is not None:
            return
        self._add(self._read_log(self.reward_log))
        assert self.logged is not None
        self.model.fit(self.logged)

    def _read_log(self, path: str) -> Tensor:
        """The rows of a log that this policy can learn from, ``(n, P + Q + 2)``.

        Raises:
            InputError: If there are none.
        """
        names = self.data.directory.item_ids
        ours = {
            (e.user_id, e.number, names[e.candidates[e.target].index]): e
            for e in self.data.episodes("train")
        }
        rows = read_rewards(path).filter(
            pl.col("reward").is_not_null(),
            pl.col("patterns") == self.patterns.fingerprint,
            pl.col("environment") == environment_fingerprint(self.environment_metadata),
        )
        key = ("user", "number", "target")
        known = [r for r in rows.iter_rows(named=True) if tuple(r[name] for name in key) in ours]
        if not known:
            raise InputError(
                f"{path} has no reward of these training users, patterns and language model: name"
                " the log of such a fit, or set model.reward_log to null"
            )
        self.n_epochs_logged = 1 + max(row["epoch"] for row in known)
        episodes = [ours[tuple(row[name] for name in key)] for row in known]
        actions = torch.tensor([row["actions"] for row in known])
        rewards = torch.tensor([row["reward"] for row in known], dtype=torch.float64)
        return self._rows(actions, self.first_state(episodes), episodes, rewards)

    def _rows(
        self, actions: Tensor, state: Tensor, episodes: Sequence[Episode], rewards: Tensor
    ) -> Tensor:
        """Actions, features, group and reward of every user in one row, ``(B, P + Q + 2)``."""
        groups = [self.data.train_groups[each.key] for each in episodes]
        parts = [
            actions.cpu().double(),
            self.features(state, episodes).cpu().double(),
            torch.tensor(groups).double()[:, None],
            rewards.double()[:, None],
        ]
        return torch.cat(parts, dim=1)

    @staticmethod
    def _rows_of_logged(logged: LoggedRewards) -> Tensor:
        parts = (logged.actions, logged.features, logged.groups[:, None], logged.rewards[:, None])
        return torch.cat([each.double() for each in parts], dim=1)

    def _log_deviations(self) -> None:
        """Log the standard deviations by which the model explains the rewards."""
        for name, deviation in self.model.deviations.items():
            kind, _, number = name.partition("_")
            name = f"{kind}_{self.patterns.names[int(number)]}" if number else kind
            self.log(f"reward_sd/{name}", deviation, **EPOCH_MEAN, batch_size=1)

    # -- checkpoints -------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """With the rewards, so that a resumed run goes on learning from them."""
        super().on_save_checkpoint(checkpoint)
        if self.logged is not None:
            checkpoint[LOGGED] = dict(vars(self.logged))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """With the rewards."""
        super().on_load_checkpoint(checkpoint)
        if LOGGED in checkpoint:
            self.logged = LoggedRewards(**checkpoint[LOGGED])


@lru_cache(maxsize=4)
def _posterior_normals(n_effects: int, seed: int) -> Tensor:
    """Standard normal numbers ``(N_POSTERIOR, F)``, the same for every request."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N_POSTERIOR, n_effects, generator=generator)
