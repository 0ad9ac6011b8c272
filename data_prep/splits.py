"""Filtering, ordering, leave-last-two-out, and users with one role each (paper, section 4.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rpp.types import InputError, Split

N_WITHHELD: dict[Split, int] = {"train": 2, "validation": 2, "test": 1}
"""Place of an episode's target from the end of the user's sequence, by the user's role."""

MIN_LENGTH = 3
"""Interactions a user needs for an episode: one in each split."""


@dataclass(frozen=True)
class Sequences:
    """Every user's interactions in their order, as one flat table.

    Attributes:
        user_ids: Name of each user; the place in the list is the user's number.
        item_ids: Name of each item; the place is the item's number.
        users: User of each interaction, ascending.
        items: Item of each interaction, a user's oldest first.
        n_repeated: Interactions left out because the user had the item before.
    """

    user_ids: list[str]
    item_ids: list[str]
    users: NDArray[np.int64]
    items: NDArray[np.int64]
    n_repeated: int

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of interactions of each user."""
        return np.bincount(self.users, minlength=len(self.user_ids))

    @property
    def positions(self) -> NDArray[np.int64]:
        """Position of each interaction in its user's sequence, from 0."""
        lengths = self.lengths
        return np.arange(len(self.users)) - np.repeat(np.cumsum(lengths) - lengths, lengths)

    @property
    def splits(self) -> NDArray[np.int64]:
        """Split of each interaction, as an index into ``rpp.types.SPLITS``.

        A user's last interaction is test, the one before validation, the rest training. Users too
        short for that have training interactions only.
        """
        lengths = np.repeat(self.lengths, self.lengths)
        from_end = lengths - self.positions
        return np.where((lengths < MIN_LENGTH) | (from_end > 2), 0, 3 - from_end)

    def of(self, user: int) -> NDArray[np.int64]:
        """The items of one user, oldest first."""
        start, end = np.searchsorted(self.users, (user, user + 1))
        return self.items[start:end]


def order_and_filter(interactions: pl.DataFrame, min_interactions: int) -> Sequences:
    """Sort each user's interactions, drop repeated ones, then rare users and items.

    The sort is **stable**: interactions with the same time keep the order of the file. (An
    unstable sort changes the last item of a quarter of the users of ML-1M.) Of an item the user
    had several times only the first counts, so that no target is in its own history. Users and
    items with fewer than ``min_interactions`` are removed again and again until none is left.

    Raises:
        InputError: If nothing remains.
    """
    user_ids, item_ids = (_names(interactions[column]) for column in ("user_id", "item_id"))
    ordered = (
        interactions.lazy()
        .select(
            user=pl.col("user_id").cast(pl.Enum(user_ids)).to_physical().cast(pl.Int64),
            item=pl.col("item_id").cast(pl.Enum(item_ids)).to_physical().cast(pl.Int64),
            order="order",
        )
        .sort("user", "order", maintain_order=True)
        .filter((pl.col("user") * len(item_ids) + pl.col("item")).is_first_distinct())
        .collect()
    )
    users, items = ordered["user"].to_numpy(), ordered["item"].to_numpy()
    n_repeated = len(interactions) - len(users)
    while len(users):
        keep = np.bincount(users)[users] >= min_interactions
        keep &= np.bincount(items)[items] >= min_interactions
        if keep.all():
            break
        users, items = users[keep], items[keep]
    if not len(users):
        raise InputError(f"no interaction is left with min_interactions={min_interactions}")
    kept_users, users = np.unique(users, return_inverse=True)
    kept_items, items = np.unique(items, return_inverse=True)
    return Sequences(
        user_ids.gather(kept_users).to_list(),
        item_ids.gather(kept_items).to_list(),
        users,
        items,
        n_repeated,
    )


def assign_roles(
    sequences: Sequences, n_users: dict[Split, int], seed: int
) -> dict[Split, list[int]]:
    """Disjoint training, validation and test users.

    One permutation of the users with at least three interactions: training users are its
    beginning, validation users follow, test users are its end, read backwards. So another number
    of test users changes no other set, and a smaller set is the beginning of a larger one.

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
    """Users in a random order that keeps the order of any two whoever else is there.

    They are sorted by a hash of seed and name, so leaving out a user does not move the others.
    """

    def key(user: int) -> bytes:
        return hashlib.sha256(f"{seed} role {user_ids[user]}".encode()).digest()

    return sorted(users, key=key)


def _names(ids: pl.Series) -> pl.Series:
    """The distinct names, shorter ones first, so that whole numbers stand in their order."""
    name = pl.col("name")
    table = ids.unique().alias("name").to_frame()
    return table.sort(name.str.len_chars(), name)["name"]
