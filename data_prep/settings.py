"""Settings of the preparation of a data set."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from data_prep.sources import NAMES, SOURCES, CustomFiles, Order, Source
from rpp.types import MAX_SEED, InputError, Split


@dataclass(frozen=True)
class DataSettings:
    """How a data set is prepared.

    Args:
        name: ``ml-100k``, ``ml-1m``, ``games``, ``lastfm``, or ``custom`` for your own files.
        raw_dir: Folder with the raw files; without it they are looked for in the folder
            ``$RPP_MIRROR/NAME`` and then downloaded.
        min_interactions: Users and items with fewer interactions are removed; 0 keeps all.
        n_candidates: Number of candidates of an episode, the target included.
        candidates: ``uniform``: drawn from the catalogue; ``authors``: the users and the lists of
            the paper's authors, which need ``min_interactions: 0``.
        order: What orders a user's interactions. Lastfm has no timestamps: ``play_count`` (the
            authors' order, in which the target is the most played artist) or ``tag_time``.
        n_train_users: Users who train the policy.
        n_validation_users: Users who choose the number of steps and the checkpoint.
        n_test_users: Users in the reported figures.
        n_targets: Targets of each training user, as far as an interaction is left before them;
            each is an episode with candidates of its own.
        years: Whether titles of films contain the year; without, prompts are a third shorter, and
            the year stays only where two films share a title.
        seed: Of user splits, candidates and their order.
        custom: Files and columns of the data set ``custom``.
    """

    name: str
    raw_dir: str | None = None
    min_interactions: int = 5
    n_candidates: int = 10
    candidates: Literal["uniform", "authors"] = "uniform"
    order: Order = "time"
    n_train_users: int = 200
    n_validation_users: int = 100
    n_test_users: int = 200
    n_targets: int = 1
    years: bool = True
    seed: int = 0
    custom: CustomFiles | None = None

    def __post_init__(self) -> None:
        """Refuse invalid settings."""
        if self.name not in NAMES:
            raise InputError(f"unknown data set {self.name!r}: choose one of {', '.join(NAMES)}")
        if (self.custom is not None) != (self.name == "custom"):
            raise InputError(
                "the data set custom needs its files (custom.interactions and custom.titles)"
                if self.custom is None
                else f"files of your own were given, but the data set is {self.name!r}: name custom"
            )
        orders = self.source.orders
        if self.order not in orders:
            raise InputError(
                f"{self.name} has no order {self.order!r}: choose {' or '.join(orders)}"
            )
        if self.candidates not in ("uniform", "authors"):
            raise InputError(f"candidates is {self.candidates!r}, not uniform or authors")
        if self.candidates == "authors" and not self.source.lists:
            raise InputError(f"there are no authors' lists for {self.name}: use uniform candidates")
        lowest = {
            "min_interactions": 0,
            "n_candidates": 2,
            "n_train_users": 1,
            "n_validation_users": 1,
            "n_test_users": 1,
            "n_targets": 1,
            "seed": 0,
        }
        for key, least in lowest.items():
            if (value := getattr(self, key)) < least:
                raise InputError(f"{key} is {value}, but must be at least {least}")
        if self.seed > MAX_SEED:
            raise InputError(f"seed is {self.seed}, but must be at most {MAX_SEED}")

    @property
    def source(self) -> Source:
        """Files of the data set."""
        return self.custom.source() if self.custom else SOURCES[self.name]

    @property
    def record(self) -> dict[str, Any]:
        """The settings as a summary holds them: a single target is not mentioned.

        So folders of an older program, which knew nothing else, stay as they are.
        """
        return {
            key: value for key, value in asdict(self).items() if (key, value) != ("n_targets", 1)
        }

    def n_targets_of(self, split: Split) -> int:
        """Targets of a user at most: validation and test users have one."""
        return self.n_targets if split == "train" else 1

    @property
    def n_users(self) -> dict[Split, int]:
        """Number of users of each split."""
        return {
            "train": self.n_train_users,
            "validation": self.n_validation_users,
            "test": self.n_test_users,
        }
