"""Readers of the prepared tables except the episodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from data_prep.tables import (
    CANDIDATES,
    EPISODES_FILE,
    INTERACTIONS_FILE,
    ITEM,
    ITEM_ID,
    ITEMS_FILE,
    POSITION,
    SPLIT,
    TARGET,
    TITLE,
    USER,
    USERS_FILE,
    scan_table,
)
from rpp.types import InputError


def load_titles(folder: Path) -> list[str]:
    """Titles of the catalogue; the index in the list is the item's number."""
    table = scan_table(folder, ITEMS_FILE).select(ITEM, TITLE).sort(ITEM).collect()
    return table[TITLE].to_list()


def load_item_ids(folder: Path) -> list[str]:
    """Names of the items in the raw data; the index in the list is the item's number."""
    table = scan_table(folder, ITEMS_FILE).select(ITEM, ITEM_ID).sort(ITEM).collect()
    return table[ITEM_ID].to_list()


def load_training_pairs(folder: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Training interactions: users and items, row by row, each user's oldest first.

    Validation and test interactions are excluded, so no model is fitted to them.

    Raises:
        InputError: If one of them is the target of an episode.
    """
    pairs = (
        scan_table(folder, INTERACTIONS_FILE)
        .filter(pl.col(SPLIT) == "train")
        .select(USER, ITEM, POSITION)
        .sort(USER, POSITION)
        .collect()
    )
    _refuse_targets(folder, pairs)
    return pairs[USER].to_numpy().astype(np.int64), pairs[ITEM].to_numpy().astype(np.int64)


def _refuse_targets(folder: Path, pairs: pl.DataFrame) -> None:
    """Refuse training interactions among which there is a target: a fitted model would know it."""
    target = pl.col(CANDIDATES).list.get(pl.col(TARGET)).alias(ITEM)
    targets = scan_table(folder, EPISODES_FILE).select(USER, target).collect()
    leaked = pairs.join(targets, on=[USER, ITEM], how="semi")
    if leaked.height:
        raise InputError(
            f"{folder}: item {leaked[ITEM][0]} of user {leaked[USER][0]} is the target of an"
            " episode and a training interaction: prepare the data again"
        )


def load_users(folder: Path) -> pl.DataFrame:
    """The users table, one row per user in the order of their numbers."""
    return scan_table(folder, USERS_FILE).sort(USER).collect()
