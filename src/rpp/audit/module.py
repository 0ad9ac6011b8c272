"""The module that asks: drawn prompts for training users, on several targets of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader

from rpp.agents.joint import draw_prompts
from rpp.audit.findings import MIN_USERS, Findings, find
from rpp.learners.client import RankerClient, Stage
from rpp.prompts.patterns import Patterns
from rpp.types import MAX_SEED, Episode, InputError

USERS_AT_ONCE = 5
"""Users whose prompts are sent together; those of a user share work."""


@dataclass(frozen=True)
class Plan:
    """What an audit spends: ``n_users * n_targets * n_prompts`` calls at most.

    Args:
        n_users: Training users who are asked for; all of them, if there are fewer.
        n_targets: Targets of each of them; on a single one what lasts cannot be told from luck.
        n_prompts: Prompts of each user and target, drawn anew from all combinations of options.
        seed: Of the prompts.
    """

    n_users: int = 60
    n_targets: int = 2
    n_prompts: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse an audit that could not tell anything."""
        for name, least in (("n_users", MIN_USERS), ("n_targets", 2), ("n_prompts", 2)):
            if getattr(self, name) < least:
                raise InputError(
                    f"audit.{name} is {getattr(self, name)}: at least {least} are needed"
                )
        if not 0 <= self.seed <= MAX_SEED:
            raise InputError(f"audit.seed is {self.seed}: give a number from 0 to {MAX_SEED}")

    def users(self, episodes: Sequence[Episode]) -> list[list[Episode]]:
        """The users asked for, each with ``n_targets`` episodes.

        Raises:
            InputError: If too few have that many.
        """
        own: dict[int, list[Episode]] = {}
        for episode in episodes:
            own.setdefault(episode.user, []).append(episode)
        chosen = [each[: self.n_targets] for each in own.values() if len(each) >= self.n_targets]
        if len(chosen) < MIN_USERS:
            raise InputError(
                f"{len(chosen)} training users have {self.n_targets} targets, but an audit needs"
                f" {MIN_USERS}: raise data.n_train_users or lower audit.n_targets"
            )
        return chosen[: self.n_users]


class Audit(RankerClient):
    """Rewards of drawn prompts; run by ``trainer.test``, but no test user is asked.

    Args:
        patterns: The options.
        users: Training users, each with as many episodes.
        n_prompts: Prompts of each episode; all there are, if there are fewer.
        seed: Of the draws.

    Attributes:
        actions: Options of every prompt, ``(U, T, n, P)``.
        rewards: ``(U, T, n)``; ``nan`` where there is none yet.
    """

    def __init__(
        self, patterns: Patterns, users: Sequence[Sequence[Episode]], n_prompts: int, seed: int
    ) -> None:
        super().__init__()
        if not patterns.names:
            raise InputError("no pattern has several options: there is nothing to audit")
        self.patterns = patterns
        self.users = users
        self.actions = np.stack(
            [[draw_actions(patterns, n_prompts, seed, each) for each in user] for user in users]
        )
        self.rewards: np.ndarray = np.full(self.actions.shape[:-1], np.nan)
        self.asked_of: dict[str, str] = {}

    def setup(self, stage: str) -> None:
        """Refuse several processes.

        Raises:
            InputError: If there are several.
        """
        if self.trainer.world_size > 1:
            raise InputError(
                f"an audit runs in one process, not {self.trainer.world_size}: set trainer.devices"
                " to 1"
            )

    def max_calls(self, stage: Stage) -> int:
        """One a prompt."""
        return self.n_refined + self.rewards.size

    def calibrate(self, stage: Stage, n_prompts: int) -> None:
        """Ask the first user's first prompts."""
        self._ask([0], n_prompts)

    def test_dataloader(self) -> DataLoader[int]:
        """Numbers of the users, from 0."""
        return DataLoader(range(len(self.users)), batch_size=USERS_AT_ONCE, collate_fn=list)  # type: ignore[arg-type]

    def on_test_start(self) -> None:
        """Note who answers."""
        self.asked_of = self.environment.metadata

    def test_step(self, batch: list[int], batch_idx: int) -> None:
        """Ask every prompt of some users."""
        self.rewards[batch] = self._ask(batch).reshape(-1, *self.rewards.shape[1:])

    def _ask(self, users: Sequence[int], limit: int | None = None) -> np.ndarray:
        """Rewards of the users' prompts, one after the other."""
        n_prompts = self.rewards.shape[-1]
        asked = [each for user in users for each in self.users[user] for _ in range(n_prompts)]
        actions = torch.from_numpy(self.actions[users].reshape(len(asked), -1))[:limit]
        lengths = self.patterns.first_lengths(len(actions))
        lengths = self.patterns.next_lengths(actions.tolist(), lengths)
        return self.environment.step(asked[:limit], actions, lengths).rewards().numpy()

    def findings(self) -> Findings:
        """What the rewards tell.

        Raises:
            InputError: If there are too few.
        """
        names = dict(zip(self.patterns.names, self.patterns.n_actions, strict=True))
        return find(self.rewards, self.actions, names)


def draw_actions(patterns: Patterns, n_prompts: int, seed: int, episode: Episode) -> np.ndarray:
    """Options of different prompts, uniform over all combinations, ``(n, P)``.

    Every episode has prompts of its own, so that what pairs of options do lastingly is not taken
    for the effect of one.
    """
    return draw_prompts(patterns.n_actions, n_prompts, [seed, *episode.key]).numpy()
