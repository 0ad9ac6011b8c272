"""The prepared tables: names of files and columns, and checked access to each of them.

:func:`data_prep.prepare.prepare` writes them; all other code only reads them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from rpp.types import PROFILE, InputError

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
        InputError: If the folder or the file is missing.
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


def load_summary(folder: Path) -> dict[str, Any]:
    """The summary of the preparation: settings, counts, checksums, fingerprints.

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
