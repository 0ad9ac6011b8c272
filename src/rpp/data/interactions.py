"""The prepared tables: names of files and columns, and readers for all but the episodes.

``python -m data_prep`` writes them, everything else only reads them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rpp.types import InputError

INTERACTIONS_FILE = "interactions.parquet"
ITEMS_FILE = "items.parquet"
USERS_FILE = "users.parquet"
EPISODES_FILE = "episodes.parquet"
SUMMARY_FILE = "summary.json"
PREPARED_FILES = (INTERACTIONS_FILE, ITEMS_FILE, USERS_FILE, EPISODES_FILE, SUMMARY_FILE)

USER = "user"
USER_ID = "user_id"
ITEM = "item"
ITEM_ID = "item_id"
TITLE = "title"
N_TRAIN = "n_train"
POSITION = "position"
SPLIT = "split"
ROLE = "role"
HISTORY = "history"
CANDIDATES = "candidates"
TARGET = "target"
PROFILE = ("gender", "age", "occupation")

COLUMNS: dict[str, tuple[str, ...]] = {
    INTERACTIONS_FILE: (USER, ITEM, POSITION, SPLIT),
    ITEMS_FILE: (ITEM, ITEM_ID, TITLE, N_TRAIN),
    USERS_FILE: (USER, USER_ID, ROLE, *PROFILE),
    EPISODES_FILE: (USER, SPLIT, HISTORY, CANDIDATES, TARGET),
}
"""The columns of every prepared Parquet file, in order."""


def prepared_file(folder: Path, name: str) -> Path:
    """Path of a prepared file.

    Raises:
        InputError: If the folder or the file is not there.
    """
    path = Path(folder) / name
    if not path.is_file():
        raise InputError(
            f"{path} does not exist: prepare the data first with `python -m data_prep`"
        )
    return path


def scan_table(folder: Path, name: str) -> pl.LazyFrame:
    """Lazy scan of a prepared Parquet file whose columns have been checked.

    Raises:
        InputError: If the file is missing, unreadable or lacks a column.
    """
    path = prepared_file(folder, name)
    try:
        table = pl.scan_parquet(path)
        found = table.collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file: prepare it again") from error
    missing = [column for column in COLUMNS[name] if column not in found]
    if missing:
        raise InputError(f"{path} lacks the column {missing[0]!r}; it has {', '.join(found)}")
    return table


def load_titles(folder: Path) -> list[str]:
    """Titles of the catalogue; the place in the list is the item's number."""
    table = scan_table(folder, ITEMS_FILE).select(ITEM, TITLE).sort(ITEM).collect()
    return table[TITLE].to_list()


def load_training_pairs(folder: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Training interactions: users and items, row by row, each user's oldest first.

    Validation and test interactions are left in the file, so nothing fitted on these pairs has
    seen one.
    """
    pairs = (
        scan_table(folder, INTERACTIONS_FILE)
        .filter(pl.col(SPLIT) == "train")
        .select(USER, ITEM, POSITION)
        .sort(USER, POSITION)
        .collect()
    )
    return pairs[USER].to_numpy().astype(np.int64), pairs[ITEM].to_numpy().astype(np.int64)


def load_users(folder: Path) -> pl.DataFrame:
    """The users table, one row per user in the order of their numbers."""
    return scan_table(folder, USERS_FILE).sort(USER).collect()


def load_summary(folder: Path) -> dict[str, Any]:
    """What the preparation recorded: settings, counts, checksums, fingerprints.

    Raises:
        InputError: If the file is missing or is not JSON.
    """
    path = prepared_file(folder, SUMMARY_FILE)
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not readable JSON: prepare the data again") from error
    if not isinstance(summary, dict):
        raise InputError(f"{path} holds no JSON object: prepare the data again")
    return summary
