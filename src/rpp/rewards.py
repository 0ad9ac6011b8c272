"""The reward log: every reward of training that was paid for, as a Parquet table.

A row is one step of one episode, with the columns of :data:`SCHEMA`. The names of the patterns that
the actions belong to are in the file's metadata.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from rpp.types import InputError

SCHEMA = pl.Schema(
    {
        "user": pl.String(),  # the user's name in the raw data
        "number": pl.Int64(),  # which of the user's episodes, 0 the one with the latest target
        "target": pl.String(),  # the item's name in the raw data
        "split": pl.String(),  # whose user it is; never test
        "epoch": pl.Int64(),  # from 0
        "step": pl.Int64(),  # of the episode, from 0
        "actions": pl.List(pl.Int64()),  # an index into each pattern's options
        "history_length": pl.Int64(),  # interactions that the prompt was to show
        "reward": pl.Float64(),  # NDCG@M in [0, 1]; null: the call failed
        "probability": pl.Float64(),  # of the actions under the policy that drew them; null: unknown
        "patterns": pl.String(),  # fingerprint of the options
        "environment": pl.String(),  # fingerprint of what ranked
    }
)
"""Columns of the log, in order."""

PLAYED = ("user", "number", "target", "epoch", "step", "actions", "patterns", "environment")
"""Columns by which a step that a resumed run has played again is known."""

NAMES = "rpp.patterns"
"""Key of the names of the patterns in the file's metadata."""

PREVIOUS = ".previous.parquet"
"""End of the name under which the log of a former fit is kept."""


def read_rewards(path: str | Path) -> pl.DataFrame:
    """All rows of a log, in the order in which they were written.

    Raises:
        InputError: If the file is missing, damaged, or no reward log.
    """
    path = Path(path)
    read_names(path)
    try:
        rows = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(_unreadable(path)) from error
    return _checked(rows, path)


def read_names(path: str | Path) -> tuple[str, ...]:
    """The patterns that the actions of a log belong to, in order.

    Raises:
        InputError: If the file is missing, damaged, or no reward log.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no reward log {path}: fit first, or name another")
    try:
        names = pl.read_parquet_metadata(path).get(NAMES)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(_unreadable(path)) from error
    if names is None:
        raise InputError(f"{path} was not written as a reward log: name another place for the log")
    return tuple(json.loads(names))


def append_rewards(path: str | Path, rows: pl.DataFrame, names: Sequence[str]) -> None:
    """Add rows to a log, which is made if there is none; it is replaced as a whole.

    Steps with a reward that stand there already are not added again: a resumed run plays the
    epoch anew in which it was stopped.

    Args:
        path: The file; its folder is made.
        rows: Rows with the columns of :data:`SCHEMA`.
        names: The patterns that their actions belong to.

    Raises:
        InputError: If there is another file in its place, or a log of other patterns.
    """
    path = Path(path)
    rows = _checked(rows, path)
    if path.exists():
        before = read_rewards(path)
        if read_names(path) != tuple(names):
            raise InputError(
                f"{path} is the reward log of the patterns {', '.join(read_names(path))}, not of"
                f" {', '.join(names)}: name another place for the log"
            )
        known = before.filter(pl.col("reward").is_not_null())
        rows = pl.concat([before, rows.join(known, on=PLAYED, how="anti", maintain_order="left")])
    _write(path, rows, names)


def put_aside(path: str | Path) -> None:
    """Keep the log of a former fit under another name, if there is one."""
    path = Path(path)
    if path.is_file():
        path.replace(path.with_suffix(PREVIOUS))


def environment_fingerprint(metadata: Mapping[str, str]) -> str:
    """Names what ranks: the same for the same settings and language models."""
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()[:16]


def _write(path: Path, rows: pl.DataFrame, names: Sequence[str]) -> None:
    """Write a temporary file, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temp:
        fresh = Path(temp, path.name)
        rows.write_parquet(fresh, metadata={NAMES: json.dumps(list(names))})
        os.replace(fresh, path)


def _checked(rows: pl.DataFrame, path: Path) -> pl.DataFrame:
    """The rows, if a reward log may hold them.

    Raises:
        InputError: If columns or values are others than those of :data:`SCHEMA`.
    """
    for column, kind in SCHEMA.items():
        if rows.schema.get(column) != kind:
            raise InputError(
                f"the reward log {path} has no column {column!r} of the type {kind}: it is of"
                " another program or version, so name another place for the log"
            )
    if (rows["split"] == "test").any():
        raise InputError(
            f"the reward log {path} would hold rewards of test users, from which nothing may be"
            " learnt: leave them out"
        )
    for column in ("reward", "probability"):
        outside = rows.filter(~pl.col(column).is_between(0, 1))  # nulls are left out
        if outside.height:
            raise InputError(
                f"the reward log {path} has the {column} {outside[column][0]}, which is not between"
                " 0 and 1: name another"
            )
    return rows.select(*SCHEMA)


def _unreadable(path: Path) -> str:
    return (
        f"{path} is not a readable Parquet file: move it away, or name another place for the reward"
        " log"
    )
