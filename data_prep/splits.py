"""Filtering, ordering, leave-last-two-out, and users with one role each (paper, section 4.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from data_prep.raw import distinct
from rpp.types import InputError, Split

N_WITHHELD: dict[Split, int] = {"train": 2, "validation": 2, "test": 1}
"""Position of a user's latest target from the end of their sequence, by split."""

MIN_LENGTH = 3
"""Interactions a user needs for an episode: one in each split."""


@dataclass(frozen=True)
class Sequences:
    """Every user's interactions in their order, as one flat table.

    Attributes:
        user_ids: Name of each user; the index in the list is the user's number.
        item_ids: Name of each item; the index is the item's number.
        users: User of each interaction, ascending; every user has one.
        items: Item of each interaction, a user's oldest first.
        n_repeated: Interactions removed because the user had the item before.
    """

    user_ids: list[str]
    item_ids: list[str]
    users: NDArray[np.uint32]
    items: NDArray[np.uint32]
    n_repeated: int

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Number of interactions of each user."""
        return np.bincount(self.users, minlength=len(self.user_ids))

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """End of each user's interactions: the index after the last one."""
        return np.cumsum(self.lengths)

    @property
    def positions(self) -> NDArray[np.uint32]:
        """Position of each interaction in its user's sequence, from 0."""
        starts = (self.ends - self.lengths).astype(np.uint32)
        return np.arange(len(self.users), dtype=np.uint32) - starts[self.users]

    def splits(self, train_users: Sequence[int] = (), n_targets: int = 1) -> NDArray[np.uint8]:
        """Split of each interaction, as an index into ``rpp.types.SPLITS``.

        A user's last interaction is test, the one before validation, the rest training. Users too
        short for that have training interactions only. Further targets of training users are
        validation interactions like the first: no model may be fitted to them.

        Args:
            train_users: Users of the role train.
            n_targets: Targets that each of them offers at most.
        """
        splits = np.zeros(len(self.users), dtype=np.uint8)
        ends = self.ends[self.lengths >= MIN_LENGTH]
        splits[ends - 2], splits[ends - 1] = 1, 2
        starts = self.ends - self.lengths
        for user in train_users:
            splits[starts[user] + self.targets(user, "train", n_targets)] = 1
        return splits

    def targets(self, user: int, split: Split, n_targets: int = 1) -> NDArray[np.int64]:
        """Positions of a user's targets in their sequence, the latest first.

        Args:
            user: Number of the user.
            split: Role of the user.
            n_targets: Targets at most; fewer where no history would be left.
        """
        latest = self.lengths[user] - N_WITHHELD[split]
        return np.arange(latest, max(latest - n_targets, 0), -1)

    def of(self, user: int) -> NDArray[np.uint32]:
        """The items of one user, oldest first."""
        end = self.ends[user]
        return self.items[end - self.lengths[user] : end]


def order_and_filter(interactions: pl.DataFrame, min_interactions: int) -> Sequences:
    """Sort each user's interactions, drop repeated ones, then rare users and items.

    The sort is **stable**: interactions with the same time keep the order of the file. (An
    unstable sort changes the last item of a quarter of the users of ML-1M.) Of repeated
    interactions with an item only the first is kept, so that no target is in its own history. Users
    and items with fewer than ``min_interactions`` are removed repeatedly until none is left.

    Raises:
        InputError: If nothing remains.
    """
    user_ids, users = _numbered(interactions["user_id"])
    item_ids, items = _numbered(interactions["item_id"])
    table = pl.DataFrame({"user": users, "item": items, "order": interactions["order"]})
    # one column at a time: sorting by both at once takes four times as long
    table = table.sort("order", maintain_order=True).drop("order")
    table = table.sort("user", maintain_order=True)
    table = table.filter(pl.col("item").is_first_distinct().over("user"))
    n_repeated = len(users) - len(table)
    users, items = table["user"].to_numpy(), table["item"].to_numpy()
    while len(users):
        keep = (np.bincount(users) >= min_interactions)[users]
        keep &= (np.bincount(items) >= min_interactions)[items]
        if keep.all():
            break
        users, items = users[keep], items[keep]
    if not len(users):
        raise InputError(f"no interaction is left with min_interactions={min_interactions}")
    user_ids, users = _renumbered(user_ids, users)
    item_ids, items = _renumbered(item_ids, items)
    return Sequences(user_ids.to_list(), item_ids.to_list(), users, items, n_repeated)


def assign_roles(
    sequences: Sequences, n_users: dict[Split, int], seed: int
) -> dict[Split, list[int]]:
    """Disjoint training, validation and test users.

    One permutation of the users with at least three interactions: training users are at its
    beginning, followed by validation users; test users are at its end, in reverse. So the number of
    test users changes no other set, and a smaller set is a prefix of a larger one.

    Raises:
        InputError: If there are too few users.
    """
    eligible = np.flatnonzero(sequences.lengths >= MIN_LENGTH).tolist()
    if sum(n_users.values()) > len(eligible):
        wanted = " + ".join(f"{number} {split}" for split, number in n_users.items())
        raise InputError(
            f"{wanted} users were asked for, but only {len(eligible)} users have at least"
            f" {MIN_LENGTH} interactions: ask for fewer users or lower min_interactions"
        )
    order = permutation(eligible, sequences.user_ids, seed)
    n_train, n_seen = n_users["train"], n_users["train"] + n_users["validation"]
    return {
        "train": order[:n_train],
        "validation": order[n_train:n_seen],
        "test": order[::-1][: n_users["test"]],
    }


def permutation(users: Sequence[int], user_ids: Sequence[str], seed: int) -> list[int]:
    """Users in a random order in which any two users do not depend on the others.

    They are sorted by a hash of seed and name, so removing a user does not move the others.
    """

    def key(user: int) -> bytes:
        return hashlib.sha256(f"{seed} role {user_ids[user]}".encode()).digest()

    return sorted(users, key=key)


def _numbered(ids: pl.Series) -> tuple[pl.Series, NDArray[np.uint32]]:
    """The distinct names, and the index of each interaction's name among them.

    Shorter names come first, so that integers are in numerical order.
    """
    ids = ids.cast(pl.Categorical) if ids.dtype == pl.String else ids
    names = distinct(ids).sort(pl.col("name").str.len_chars(), "name")
    codes = names["code"].to_numpy()
    number = np.zeros(codes.max() + 1, dtype=np.uint32)
    number[codes] = np.arange(len(codes))
    return names["name"], number[ids.to_physical().to_numpy()]


def _renumbered(
    names: pl.Series, numbers: NDArray[np.uint32]
) -> tuple[pl.Series, NDArray[np.uint32]]:
    """Names still in use, and the renumbered indices."""
    used = np.bincount(numbers, minlength=len(names)) > 0
    return names.filter(pl.Series(used)), (used.cumsum(dtype=np.uint32) - 1)[numbers]
