"""Base of the recommenders: fitted to training interactions, then a score per candidate.

They rank the same episodes as the other methods: the same users, histories and candidates. They
are fitted to the training interactions of *all* users; validation episodes may select a setting;
the target of a test episode is never read.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from data_prep.tables import load_summary
from rpp.data.artifacts import load_or_make
from rpp.data.episodes import load_episodes
from rpp.data.interactions import load_titles, load_training_pairs, load_users
from rpp.data.lightgcn import LightGCNSettings
from rpp.data.vectors import CollaborativeVectors
from rpp.metrics import ndcg, target_ranks
from rpp.types import Episode, InputError, Ranking, arbitrary_order

ARTIFACTS_FOLDER = "baselines"
"""Subfolder of a prepared folder for fitted recommenders."""

Scorer = Callable[[Sequence[Episode]], Tensor]
"""From ``B`` episodes to a score for each of their ``M`` candidates, shape ``(B, M)``."""

Result = TypeVar("Result")
Option = TypeVar("Option")


@dataclass(frozen=True)
class TrainingData:
    """Training and validation data of a recommender.

    Attributes:
        folder: The prepared folder, or that of a checkpoint which carries these data.
        users: User of each training interaction, ascending; shape ``(n_interactions,)``.
        items: Item of each, a user's oldest first; shape ``(n_interactions,)``.
        n_users: Number of users, with or without training interactions.
        titles: Title of each item.
        validation: Episodes for selecting a setting.
        fingerprint: Of items, training interactions and validation episodes.
        name: Name of the data set; empty for data of the user's own.
        artifacts: Subfolder of the prepared folder for what is learnt.
        left_out: Users without training interactions here, though the folder has some.
        vectors: Collaborative vectors of these data; by default they are in the folder, or are
            trained for it.
        lightgcn: How; by default as those that are in the folder.
        keeps: Whether what is learnt is written to the folder. If not, it is read where it is
            there, and learnt anew where it is not.
    """

    folder: Path
    users: NDArray[np.int64]
    items: NDArray[np.int64]
    n_users: int
    titles: tuple[str, ...]
    validation: tuple[Episode, ...]
    fingerprint: str
    name: str = ""
    artifacts: str = ARTIFACTS_FOLDER
    left_out: frozenset[int] = frozenset()
    vectors: CollaborativeVectors | None = None
    lightgcn: LightGCNSettings | None = None
    keeps: bool = True

    @classmethod
    def read(cls, folder: Path) -> TrainingData:
        """Read a folder written by ``python -m data_prep``.

        Raises:
            InputError: If the folder is incomplete or holds no training interaction.
        """
        folder = Path(folder)
        summary = load_summary(folder)
        fingerprint = summary.get("fingerprint")
        if not fingerprint:
            raise InputError(f"{folder} has no fingerprint of its data: prepare it again")
        users, items = load_training_pairs(folder)
        if not len(users):
            raise InputError(f"{folder} has no training interactions: lower min_interactions")
        name = str(summary.get("settings", {}).get("name", ""))
        return cls(
            folder,
            users,
            items,
            load_users(folder).height,
            tuple(load_titles(folder)),
            tuple(load_episodes(folder, "validation")),
            str(fingerprint),
            "" if name == "custom" else name,
        )

    def without(self, users: Collection[int]) -> TrainingData:
        """The same without the training interactions of some users.

        Raises:
            InputError: If nothing is left.
        """
        kept = ~np.isin(self.users, list(users))
        if not kept.any():
            raise InputError(f"{self.folder} has no users left to learn from: tune on fewer users")
        name = hashlib.sha256(repr(sorted(users)).encode()).hexdigest()[:16]
        return replace(
            self,
            users=self.users[kept],
            items=self.items[kept],
            fingerprint=f"{self.fingerprint} without {name}",
            left_out=self.left_out | frozenset(users),
        )

    @property
    def n_items(self) -> int:
        """Number of items, with or without training interactions."""
        return len(self.titles)

    @cached_property
    def matrix(self) -> csr_array:
        """Binary training matrix :math:`X`, shape ``(n_users, n_items)``, double precision."""
        matrix = csr_array(
            (np.ones(len(self.users)), (self.users, self.items)), (self.n_users, self.n_items)
        )
        matrix.data[:] = 1  # repeated interactions of the file were added up
        return matrix

    def keep(
        self,
        name: str,
        settings: Mapping[str, Any],
        make: Callable[[], Mapping[str, Tensor]],
        load: Callable[[Mapping[str, Tensor]], Result],
    ) -> Result:
        """Load or make an object from tensors cached for these data and settings.

        Args:
            name: Name of the file.
            settings: Everything the tensors depend on besides the data.
            make: Makes them if they are missing or made from other data or settings.
            load: From tensors to the result.

        Raises:
            InputError: If the folder cannot be written to.
        """
        metadata = {"data": self.fingerprint, "settings": repr(sorted(settings.items()))}
        folder = self.folder / self.artifacts
        path = folder / f"{name}.safetensors"
        if not (self.keeps or path.is_file()):
            return load(make())
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except PermissionError as error:
            raise InputError(
                f"{self.folder} cannot be written to, so {name} cannot be saved: copy the folder to"
                " a place that can"
            ) from error
        return load_or_make(path, metadata, load, make)


class Recommender(ABC):
    """A method of the comparison; subclass it with a ``name`` and :meth:`learn`.

    Scores depend neither on the order of the candidates nor on the other users. One that prompts
    are to name learns from the fields of its data alone: at request time the folder has no tables.
    """

    name: str
    """Short name in tables."""

    _scorer: Scorer | None = None

    @abstractmethod
    def learn(self, data: TrainingData) -> Scorer:
        """Learn from training interactions, or load what was learned before.

        Returns:
            The scoring function.

        Raises:
            InputError: If the data cannot be learned from.
        """

    def fit(self, folder: Path) -> None:
        """Fit to a folder written by ``python -m data_prep``; fitted models are cached in it.

        Raises:
            InputError: If the folder is incomplete, cannot be written to or learned from.
        """
        self.fit_to(TrainingData.read(folder))

    def fit_to(self, data: TrainingData) -> None:
        """Fit to training interactions.

        Raises:
            InputError: If the folder cannot be written to, or the data not learned from.
        """
        with torch.inference_mode(False), torch.enable_grad():  # a test step switches them off
            self._scorer = self.learn(data)

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments, part of the cache key."""
        return {name: value for name, value in vars(self).items() if name != "_scorer"}

    def score(self, episodes: Sequence[Episode]) -> Tensor:
        """Score every candidate; larger is better.

        Args:
            episodes: ``B`` users of the fitted data set; targets are not read.

        Returns:
            Shape ``(B, M)``, double precision.

        Raises:
            RuntimeError: If nothing has been fitted.
            ValueError: If there are no episodes, a score is not finite, or users have different
                numbers of candidates.
        """
        if self._scorer is None:
            raise RuntimeError(f"{self.name} was asked for scores before fit")
        if not episodes:
            raise ValueError(f"{self.name} was given no episodes to score")
        scores = self._scorer(episodes).double()
        if not scores.isfinite().all():
            raise ValueError(f"{self.name} gave scores that are not finite")
        return scores


def candidate_items(episodes: Sequence[Episode]) -> Tensor:
    """Items of the candidates in the order shown, shape ``(B, M)``.

    Raises:
        ValueError: If users have different numbers of candidates.
    """
    return torch.tensor([[item.index for item in episode.candidates] for episode in episodes])


def past_items(episode: Episode, n_history: int = 0) -> list[int]:
    """The last ``n_history`` items of a user's history, oldest first; 0 means all of it."""
    return [item.index for item in episode.history[-n_history:]]


def rank(scores: Tensor, episodes: Sequence[Episode], seed: int = 0) -> list[Ranking]:
    """Candidates by score; ties in a seeded order independent of target and display.

    Args:
        scores: Shape ``(B, M)``; larger is better.
        episodes: ``B`` users; their targets are not read.
        seed: Of the order among equal scores.
    """
    rankings = []
    for row, episode in zip(scores.tolist(), episodes, strict=True):
        order = sorted(arbitrary_order(episode, seed), key=lambda k: -row[k])
        rankings.append(Ranking(tuple(order), len(order), "valid"))
    return rankings


def choose(
    options: Iterable[Option], scorer: Callable[[Option], Scorer], episodes: Sequence[Episode]
) -> Option:
    """The option with the highest mean NDCG@10 on validation users; the first one of ties.

    Args:
        options: What to choose from.
        scorer: From an option to a scoring function.
        episodes: Validation users.
    """
    return max(options, key=lambda option: validation_ndcg(scorer(option), episodes))


def validation_ndcg(scorer: Scorer, episodes: Sequence[Episode]) -> float:
    """Mean NDCG@10 of training or validation episodes.

    Raises:
        InputError: If there are none: nothing can be chosen.
    """
    if not episodes:
        raise InputError(
            "a recommender is to choose its settings and there is no user to choose them on: give"
            " it a single value of each, or prepare the data with fewer users"
        )
    ranks = target_ranks(rank(scorer(episodes), episodes), episodes)
    return float(ndcg(ranks, 10).mean())
