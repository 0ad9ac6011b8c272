"""Replies and scores on disk: a repeated prompt costs no call to the language model.

``python -m rpp.llms.cache stats`` tells what is kept, ``clear`` drops it.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from threading import Lock
from time import time
from typing import Any

from filelock import FileLock
from rich.console import Console

from rpp.assets import cache_dir
from rpp.types import InputError

FILE = "replies.sqlite"

STALE = 3600
"""Seconds after which a use is noted again: reading would otherwise always write."""


class ReplyCache:
    """A table of JSON values in SQLite: survives crashes, shared by processes, nothing pickled.

    Threads may put values at the same time.

    Args:
        folder: Where ``replies.sqlite`` lies; ``None`` keeps it in memory for this run.
        max_gb: Size, in 10^9 bytes, above which the values not used for longest are dropped;
            ``None`` is without limit.

    Raises:
        InputError: If the folder cannot be used.
    """

    def __init__(self, folder: str | Path | None, max_gb: float | None = None) -> None:
        self.path = None if folder is None else Path(folder) / FILE
        self.max_bytes = None if max_gb is None else int(max_gb * 1e9)
        try:
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._open()
        except (OSError, sqlite3.OperationalError) as error:
            raise InputError(
                f"the reply cache {self.path} cannot be used ({error}): set environment.cache_dir"
                " to a folder that can be written to, or to null"
            ) from error
        except sqlite3.DatabaseError as error:
            if self.path is None:
                raise
            aside = self.path.with_suffix(".corrupt")
            os.replace(self.path, aside)
            for rest in ("-wal", "-shm"):
                self.path.with_name(self.path.name + rest).unlink(missing_ok=True)
            warnings.warn(
                f"reply cache {self.path} is damaged ({error}): moved to {aside}, starting afresh",
                stacklevel=2,
            )
            self._connection = self._open()
        self._broken = False
        self._writing = Lock()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path or ":memory:", timeout=60, isolation_level=None, check_same_thread=False
        )
        # one process after the other: a change of the journal does not wait for a lock
        lock = FileLock(f"{self.path}.lock") if self.path else nullcontext()
        try:
            with lock:
                self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    @staticmethod
    def _prepare(connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS replies"
            " (key TEXT PRIMARY KEY, value TEXT, used INTEGER DEFAULT 0)"
        )
        if "used" not in {row[1] for row in connection.execute("PRAGMA table_info(replies)")}:
            connection.execute("ALTER TABLE replies ADD COLUMN used INTEGER DEFAULT 0")
        connection.execute("SELECT key FROM replies LIMIT 1").fetchone()

    def get(self, keys: Sequence[str]) -> dict[str, Any]:
        """Values of those keys that are known; they count as used now."""
        known: dict[str, Any] = {}
        now = int(time())
        for start in range(0, len(keys), 500):
            some = list(keys[start : start + 500])
            marks = ",".join("?" * len(some))
            query = f"SELECT key, value, used FROM replies WHERE key IN ({marks})"  # noqa: S608
            try:
                rows = self._connection.execute(query, some).fetchall()
            except sqlite3.DatabaseError as error:
                self._complain("read", error)
                return known
            known |= self._values(rows)
            stale = [(now, key) for key, _, used in rows if used < now - STALE]
            if stale:
                with self._writing:
                    self._write("UPDATE replies SET used = ? WHERE key = ?", stale)
        return known

    def _values(self, rows: Sequence[tuple[str, str, int]]) -> dict[str, Any]:
        """Values by key; one that cannot be read counts as unknown and is replaced."""
        values = {}
        for key, value, _ in rows:
            try:
                values[key] = json.loads(value)
            except (TypeError, ValueError):
                warnings.warn(
                    f"reply cache {self.path} holds a value that cannot be read: what it belongs"
                    " to is asked again",
                    stacklevel=4,
                )
        return values

    def put(self, values: Mapping[str, Any]) -> None:
        """Keep values; a full disk or a damaged file costs the cache, never the run."""
        now = int(time())
        rows = [(key, json.dumps(value), now) for key, value in values.items()]
        with self._writing:
            self._write("INSERT OR REPLACE INTO replies VALUES (?, ?, ?)", rows)
            if self.max_bytes is not None and not self._broken and self.n_bytes > self.max_bytes:
                self._evict(self.max_bytes)

    def _write(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(statement, rows)
            self._connection.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            self._complain("written", error)

    def _complain(self, what: str, error: sqlite3.DatabaseError) -> None:
        """Say once that the file is of no use any more."""
        if not self._broken:
            warnings.warn(
                f"reply cache {self.path} cannot be {what} ({error}): the run goes on, its"
                " replies are not kept",
                stacklevel=4,
            )
        self._broken = True

    def _evict(self, max_bytes: int) -> None:
        """Drop the values not used for longest, a tenth more than need be.

        The file does not shrink: what becomes free is written to again.
        """
        share = 1 - 0.9 * max_bytes / self.n_bytes
        n_dropped = max(1, int(len(self) * share))
        self._write(
            "DELETE FROM replies WHERE key IN (SELECT key FROM replies ORDER BY used LIMIT ?)",
            [(n_dropped,)],
        )

    @property
    def n_bytes(self) -> int:
        """Bytes the values take."""
        pages, free, size = (
            int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def last_use(self) -> tuple[int, int] | None:
        """Oldest and newest use of a value, in seconds since 1970; ``None`` if there is none."""
        oldest, newest = self._connection.execute(
            "SELECT MIN(used), MAX(used) FROM replies"
        ).fetchone()
        return None if newest is None else (int(oldest), int(newest))

    def clear(self) -> None:
        """Drop every value and give the disk space back."""
        self._connection.execute("DELETE FROM replies")
        self._connection.execute("VACUUM")

    def __len__(self) -> int:
        """Number of values."""
        return int(self._connection.execute("SELECT COUNT(*) FROM replies").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def default_folder() -> Path:
    """Where replies are kept unless ``environment.cache_dir`` says otherwise."""
    return cache_dir() / "replies"


def main(arguments: Sequence[str] | None = None) -> None:
    """Tell what the cache keeps, or drop it."""
    parser = argparse.ArgumentParser(
        prog="python -m rpp.llms.cache", description="The language model's replies on disk."
    )
    parser.add_argument("command", choices=["stats", "clear"])
    parser.add_argument("--cache_dir", type=Path, default=default_folder())
    given = parser.parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    if not (given.cache_dir / FILE).is_file():
        console.print(f"no replies are kept in {given.cache_dir}")
        return
    cache = ReplyCache(given.cache_dir)
    console.print(f"{len(cache):,} replies and scores, {cache.n_bytes / 1e6:.1f} MB: {cache.path}")
    if (uses := cache.last_use()) is not None:
        oldest, newest = (datetime.fromtimestamp(use).strftime("%Y-%m-%d %H:%M") for use in uses)
        console.print(f"last used between {oldest} and {newest}")
    if given.command == "clear":
        cache.clear()
        console.print("cleared")
    cache.close()


if __name__ == "__main__":
    main()
