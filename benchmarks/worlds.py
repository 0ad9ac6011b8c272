"""Worlds whose rewards are known: learners run in them for hundreds of seeds without a call.

A world is either planted (the truth is drawn, so that what could be had is known) or a table of
the rewards of a real language model, made once by :mod:`benchmarks.reward_table`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from rpp.data.datamodule import EpisodeDataModule
from rpp.data.vectors import CollaborativeVectors
from rpp.llms.base import ScriptedLanguageModel
from rpp.prompts.patterns import Patterns, load_patterns
from rpp.ranker import Ranker
from rpp.rollout import Environment, Step
from rpp.types import Episode, Item, Split

PATTERNS = "conf/patterns/movies.yaml"
TABLE_PATTERNS = "conf/patterns/movies_evidence.yaml"

LENGTHS = (1, 4, 10, 20)
"""History lengths of the default."""

N_CANDIDATES = 10


def table_patterns() -> Patterns:
    """The 64 prompts of the reward table: 4 lengths, 2 guidances, 8 options of evidence."""
    every = load_patterns(TABLE_PATTERNS, history_lengths=LENGTHS)
    return replace(
        every, role=every.role[:1], reasoning=every.reasoning[:2], format=every.format[:1],
        manual=None,
    )  # fmt: skip


class World(ABC):
    """Users, and what every prompt is worth for each of them.

    Attributes:
        patterns: The options.
        vectors: Of the users, ``(n_users, D)``.
        history_lengths: Of the users, ``(n_users,)``.
    """

    patterns: Patterns
    vectors: Tensor
    history_lengths: NDArray[np.int64]

    @abstractmethod
    def rewards(self, users: Tensor, numbers: Tensor, actions: Tensor) -> Tensor:
        """Rewards of prompts, ``(B,)``.

        Args:
            users: ``(B,)``.
            numbers: Which of the user's targets, ``(B,)``.
            actions: ``(B, P)``.
        """

    @abstractmethod
    def value(self, users: Tensor, actions: Tensor) -> Tensor:
        """What prompts are worth for users they were not chosen by, ``(B,)``."""

    def gain(self, users: Tensor, actions: Tensor) -> float:
        """Mean value of prompts above that of random prompts, for the same users."""
        return float((self.value(users, actions) - self.random_value(users)).mean())

    @abstractmethod
    def random_value(self, users: Tensor) -> Tensor:
        """Mean value of all prompts, ``(B,)``."""


@dataclass(frozen=True)
class Spreads:
    """Standard deviations of a planted world's rewards, as measured on ML-100K.

    Attributes:
        level: Between users and targets.
        length: Of a history length on one target alone.
        rest: Of the rest of a prompt on one target alone.
        personal: Lasting effects of options for a user, in all; linear in the user's vector.
        best: Gain of the best static prompt over a random one.
    """

    level: float = 0.27
    length: float = 0.112
    rest: float = 0.047
    personal: float = 0.0
    best: float = 0.039


class PlantedWorld(World):
    """Main effects, personal effects and luck are drawn.

    Args:
        spreads: How much of each.
        seed: Of the draw.
        n_users: Number of users.
        n_targets: Targets of each user.
        dim: Width of the users' vectors, all of which personal effects depend on.
    """

    def __init__(
        self, spreads: Spreads, seed: int, n_users: int = 2000, n_targets: int = 1, dim: int = 8
    ) -> None:
        rng = np.random.default_rng([seed, 77])
        self.patterns = load_patterns(PATTERNS, history_lengths=LENGTHS)
        n_actions = self.patterns.n_actions
        self.vectors = torch.tensor(rng.standard_normal((n_users, dim)), dtype=torch.float32)
        self.history_lengths = np.full(n_users, 30)
        main = [rng.standard_normal(n) for n in n_actions]
        main = [each - each.mean() for each in main]
        scale = spreads.best / sum(each.max() for each in main)
        self.main = [torch.tensor(each * scale) for each in main]
        personal = [rng.standard_normal((n, dim)) for n in n_actions]
        share = spreads.personal / len(n_actions) ** 0.5 / dim**0.5
        self.personal = [
            torch.tensor((each - each.mean(0)) * share * (len(each) / (len(each) - 1)) ** 0.5)
            for each in personal
        ]
        shape = n_users, n_targets
        self.levels = torch.tensor(rng.normal(0.7, spreads.level, shape))
        at = self.patterns.names.index("history")
        self.history_at = at
        self.of_length = torch.tensor(rng.normal(0, spreads.length, (*shape, n_actions[at])))
        self.others = [k for k in range(len(n_actions)) if k != at]
        sizes = [n_actions[k] for k in self.others]
        self.of_rest = torch.tensor(rng.normal(0, spreads.rest, (*shape, *sizes)))

    def rewards(self, users: Tensor, numbers: Tensor, actions: Tensor) -> Tensor:
        """Level, luck and value."""
        rest = self.of_rest[(users, numbers, *(actions[:, k] for k in self.others))]
        luck = self.of_length[users, numbers, actions[:, self.history_at]] + rest
        return self.levels[users, numbers] + luck + self.value(users, actions)

    def value(self, users: Tensor, actions: Tensor) -> Tensor:
        """Main and personal effects; 0 on average over prompts."""
        vectors = self.vectors[users].double()
        return torch.stack(
            [
                main[actions[:, k]] + (personal[actions[:, k]] * vectors).sum(dim=1)
                for k, (main, personal) in enumerate(zip(self.main, self.personal, strict=True))
            ]
        ).sum(dim=0)

    def random_value(self, users: Tensor) -> Tensor:
        """Nothing, by construction."""
        return torch.zeros(len(users), dtype=torch.float64)


class TableWorld(World):
    """The rewards of a language model for every prompt of :func:`table_patterns`.

    Args:
        path: Parquet file of :mod:`benchmarks.reward_table`.
        model: Rows of which model.
    """

    def __init__(self, path: Path, model: str) -> None:
        table = pl.read_parquet(path).filter(pl.col("model") == model).sort("user", "number")
        self.patterns = table_patterns()
        n_users = table["user"].n_unique()
        by_user = table.unique("user", maintain_order=True)
        self.vectors = torch.tensor(by_user["vector"].to_list(), dtype=torch.float32)
        self.history_lengths = by_user["history_length"].to_numpy().astype(np.int64)
        self.scores = torch.tensor(table["ndcg"].to_list(), dtype=torch.float64)
        self.scores = self.scores.reshape(n_users, -1, *self.patterns.n_actions)

    def rewards(self, users: Tensor, numbers: Tensor, actions: Tensor) -> Tensor:
        """Those of the table."""
        return self.scores[(users, numbers, *actions.unbind(dim=1))]

    def value(self, users: Tensor, actions: Tensor) -> Tensor:
        """Mean over the user's targets."""
        return self.scores.mean(dim=1)[(users, *actions.unbind(dim=1))]

    def random_value(self, users: Tensor) -> Tensor:
        """Mean over all prompts."""
        return self.scores[users].flatten(1).mean(dim=1)


@dataclass(frozen=True)
class KnownStep(Step):
    """A step whose rewards are known without a ranking.

    Attributes:
        known: The rewards, ``(B,)``.
    """

    known: Tensor

    def rewards(self) -> Tensor:
        """The known rewards."""
        return self.known


@dataclass(frozen=True)
class KnownEnvironment(Environment):
    """Answers from a world, in the place of a language model.

    Attributes:
        world: Has the rewards.
        n_asked: Number of prompts of every step so far.
    """

    world: World | None = None
    n_asked: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, world: World) -> KnownEnvironment:
        """The environment of a world."""
        ranker = Ranker(ScriptedLanguageModel(reply=""))  # is not asked
        return cls(world.patterns, ranker, world=world)

    def step(
        self,
        episodes: Sequence[Episode],
        actions: Tensor,
        lengths: Sequence[int],
        asks: bool = True,
    ) -> Step:
        """Look up the rewards."""
        assert self.world is not None
        self.n_asked.append(len(episodes))
        users = torch.tensor([episode.user for episode in episodes])
        numbers = torch.tensor([episode.number for episode in episodes])
        rewards = self.world.rewards(users, numbers, actions.cpu())
        return KnownStep(episodes, actions, lengths, (), (), rewards.float())


class WorldUsers(EpisodeDataModule):
    """Users of a world as a data module.

    Args:
        world: The world.
        users: Its users by split.
        n_targets: Targets of each training user.
        batch_size: Users per update.
    """

    def __init__(
        self, world: World, users: Mapping[Split, Sequence[int]], n_targets: int, batch_size: int
    ) -> None:
        super().__init__(batch_size=batch_size, n_candidates=N_CANDIDATES, reshuffle=False)
        for split, own in users.items():
            numbers = range(n_targets if split == "train" else 1)
            self._episodes[split] = [_episode(world, u, k, split) for u in own for k in numbers]
        self.vectors = CollaborativeVectors(world.vectors, torch.zeros(1, world.vectors.shape[1]))

    def prepare_data(self) -> None:
        """There is nothing to prepare."""

    def setup(self, stage: str) -> None:
        """Everything is there already."""

    @property
    def summary(self) -> dict[str, Any]:
        """What a learner asks for."""
        settings = {"name": "world", "seed": 0, "n_candidates": N_CANDIDATES}
        return {"fingerprint": "world", "settings": settings}


_CANDIDATES = tuple(Item(k, f"item {k}") for k in range(N_CANDIDATES))
_PAST = Item(N_CANDIDATES, "past item")


def _episode(world: World, user: int, number: int, split: Split) -> Episode:
    """A user and one of their targets; the items are of no consequence."""
    history = (_PAST,) * int(world.history_lengths[user])
    return Episode(
        user, history, _CANDIDATES, withheld=0, split=split, user_id=str(user), number=number
    )
