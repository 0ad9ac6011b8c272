"""Episodes from the prepared Parquet file."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from data_prep.tables import (
    CANDIDATES,
    EPISODES_FILE,
    HISTORY,
    SPLIT,
    TARGET,
    USER,
    USER_ID,
    scan_table,
)
from rpp.data.interactions import load_titles, load_users
from rpp.types import PROFILE, SPLITS, Episode, InputError, Item, Split, normalise

NUMBER = "number"
"""Column made while reading: which of the user's episodes, 0 the latest."""


def load_episodes(folder: Path, split: Split, limit: int | None = None) -> list[Episode]:
    """Read the episodes of one user set.

    Args:
        folder: A folder written by ``python -m data_prep``.
        split: Which user set.
        limit: Number of episodes to read. They are in the seeded random order of the users, each
            user's latest first, so a smaller limit gives a subset of a larger one.

    Raises:
        InputError: If a file is missing or damaged, the limit is below 1 or exceeds the set.
    """
    if split not in SPLITS:
        raise InputError(f"split is {split!r}, but must be one of {', '.join(SPLITS)}")
    rows = (
        scan_table(folder, EPISODES_FILE)
        .filter(pl.col(SPLIT) == split)
        .with_columns(pl.int_range(pl.len()).over(USER).alias(NUMBER))
        .collect()
    )
    if limit is not None and not 1 <= limit <= rows.height:
        raise InputError(
            f"{limit} {split} episodes were asked for, but {folder} was prepared with {rows.height}"
        )
    titles = load_titles(folder)
    users = load_users(folder)
    catalogue = [Item(index, title) for index, title in enumerate(titles)]
    episodes = []
    for row in rows.head(rows.height if limit is None else limit).iter_rows(named=True):
        user = users.row(row[USER], named=True) if row[USER] < users.height else None
        if user is None or max(*row[HISTORY], *row[CANDIDATES]) >= len(catalogue):
            raise InputError(
                f"{folder}: an episode of user {row[USER]} names a user or item that is in no"
                " table: prepare the data again"
            )
        episodes.append(
            Episode(
                user=row[USER],
                history=tuple(catalogue[item] for item in row[HISTORY]),
                candidates=tuple(catalogue[item] for item in row[CANDIDATES]),
                withheld=row[TARGET],
                split=split,
                user_id=user[USER_ID],
                profile={key: user[key] for key in PROFILE if user[key] is not None},
                number=row[NUMBER],
            )
        )
    return episodes


def draw_negatives(
    target: Item,
    catalogue: Sequence[Item],
    seen: Collection[int],
    n: int,
    rng: np.random.Generator,
) -> list[Item]:
    """Items new to a user, uniform over the catalogue, with different titles.

    Args:
        target: The target; none of them has its title.
        catalogue: All items.
        seen: Numbers of the items the user has interacted with.
        n: Number of items; fewer if there are no more.
        rng: Source of randomness.
    """
    chosen: dict[str, Item] = {}
    for k in rng.permutation(len(catalogue)):
        if len(chosen) == n:
            break
        item = catalogue[int(k)]
        if item.index not in seen and normalise(item.title) != normalise(target.title):
            chosen.setdefault(normalise(item.title), item)
    return list(chosen.values())
