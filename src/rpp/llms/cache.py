"""Replies and scores on disk: a repeated prompt costs no call to the language model."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from tqdm import tqdm

from rpp.llms.base import LanguageModel, LanguageModelError, LanguageModelStop, Usage

CHUNK = 32
"""Prompts sent at once to a model that takes batches; kept before the next are sent."""


class ReplyCache:
    """A table of JSON values in SQLite: survives crashes, shared by processes, nothing pickled.

    Threads may put values at the same time.

    Args:
        folder: Where ``replies.sqlite`` lies; ``None`` keeps it in memory for this run.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.path = None if folder is None else Path(folder) / "replies.sqlite"
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = self._open()
        except sqlite3.DatabaseError as error:
            if self.path is None or isinstance(error, sqlite3.OperationalError):
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
        self._full = False
        self._writing = Lock()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path or ":memory:", timeout=60, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID"
        )
        connection.execute("SELECT key FROM replies LIMIT 1").fetchone()
        return connection

    def get(self, keys: Sequence[str]) -> dict[str, Any]:
        """Values of those keys that are known."""
        known: dict[str, Any] = {}
        for start in range(0, len(keys), 500):
            some = list(keys[start : start + 500])
            marks = ",".join("?" * len(some))
            rows = self._connection.execute(
                f"SELECT key, value FROM replies WHERE key IN ({marks})",  # noqa: S608
                some,
            )
            known.update((key, json.loads(value)) for key, value in rows)
        return known

    def put(self, values: Mapping[str, Any]) -> None:
        """Keep values; a full disk costs the cache, never the run."""
        rows = [(key, json.dumps(value)) for key, value in values.items()]
        with self._writing:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.executemany("INSERT OR REPLACE INTO replies VALUES (?, ?)", rows)
                self._connection.execute("COMMIT")
            except sqlite3.OperationalError as error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                if not self._full:
                    warnings.warn(
                        f"reply cache {self.path} cannot be written ({error}): the run goes on, its"
                        " replies are not kept",
                        stacklevel=2,
                    )
                self._full = True

    def __len__(self) -> int:
        """Number of values."""
        return int(self._connection.execute("SELECT COUNT(*) FROM replies").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


class CachedLanguageModel(LanguageModel):
    """A language model that is asked only what it has not answered before.

    Within one call equal prompts are sent once; failures are never kept.

    Args:
        model: The model to ask.
        cache: Where its answers are kept.
    """

    def __init__(self, model: LanguageModel, cache: ReplyCache) -> None:
        super().__init__()
        self.model = model
        self.cache = cache
        self.n_calls = 0
        self.n_hits = 0

    @property
    def fingerprint(self) -> str:
        """That of the model."""
        return self.model.fingerprint

    @property
    def tokens(self) -> Usage:
        """Tokens the model has read and written, cached answers not counted."""
        return self.model.usage

    def generate(self, prompts: Sequence[str]) -> list[str | LanguageModelError]:
        """Answer every prompt, from the cache where it is known."""
        keys = [self._key("generate", prompt) for prompt in prompts]
        return self._fill(
            keys, prompts, lambda rows: self.model.generate([prompts[r] for r in rows])
        )

    def permute(
        self, prompts: Sequence[str], options: Sequence[Sequence[str]]
    ) -> list[str | LanguageModelError]:
        """Constrained reply to every prompt, from the cache where it is known."""
        keys = [
            self._key("permute", prompt, *lines)
            for prompt, lines in zip(prompts, options, strict=True)
        ]
        return self._fill(
            keys,
            prompts,
            lambda rows: self.model.permute([prompts[r] for r in rows], [options[r] for r in rows]),
        )

    def score(
        self,
        prompts: Sequence[str],
        continuations: Sequence[Sequence[str]],
        begun: Sequence[str] | None = None,
    ) -> list[list[float] | LanguageModelError]:
        """Scores of every prompt's continuations; their order does not matter to the cache."""
        starts = begun or [""] * len(prompts)
        sets = [sorted(set(texts)) for texts in continuations]
        keys = [
            self._key("score", prompt, start, *texts)
            for prompt, start, texts in zip(prompts, starts, sets, strict=True)
        ]
        rows = self._fill(
            keys,
            prompts,
            lambda some: self.model.score(
                [prompts[r] for r in some], [sets[r] for r in some], [starts[r] for r in some]
            ),
        )
        return [
            row
            if isinstance(row, LanguageModelError)
            else [dict(zip(texts, row, strict=True))[text] for text in asked]
            for row, texts, asked in zip(rows, sets, continuations, strict=True)
        ]

    def count_tokens(self, text: str) -> int:
        """As the model counts."""
        return self.model.count_tokens(text)

    @property
    def context_length(self) -> int | None:
        """That of the model."""
        return self.model.context_length

    @property
    def max_reply_tokens(self) -> int:
        """That of the model."""
        return self.model.max_reply_tokens

    def close(self) -> None:
        """Close the cache and free the model."""
        self.cache.close()
        self.model.close()

    def _key(self, *parts: str) -> str:
        text = json.dumps([self.model.fingerprint, *parts])
        return hashlib.sha256(text.encode()).hexdigest()

    def _fill(
        self,
        keys: Sequence[str],
        prompts: Sequence[str],
        ask: Callable[[list[int]], Iterable[Any]],
    ) -> list[Any]:
        """Answers in the order of ``keys``; asks for unknown ones, similar lengths together."""
        known: dict[str, Any] = self.cache.get(keys)
        self.n_hits += sum(key in known for key in keys)
        first = {key: row for row, key in reversed(list(enumerate(keys))) if key not in known}
        rows = sorted(first.values(), key=lambda row: (len(prompts[row]), row))
        self.n_hits += len(keys) - sum(key in known for key in keys) - len(rows)
        several = self.model.concurrency > 1
        size = 1 if several else CHUNK
        chunks = [rows[start : start + size] for start in range(0, len(rows), size)]

        def answer(some: list[int]) -> dict[str, Any]:
            """Ask and keep what is answered, in the thread that asks: no interrupt loses it."""
            try:
                answers = list(ask(some))
            except LanguageModelError as error:
                answers = [error] * len(some)
            fresh = dict(zip((keys[row] for row in some), answers, strict=True))
            kept = {k: v for k, v in fresh.items() if not isinstance(v, LanguageModelError)}
            if kept:
                self.cache.put(kept)
            return fresh

        with (
            ThreadPoolExecutor(self.model.concurrency) as pool,
            tqdm(total=len(rows), desc="prompts", leave=False, disable=None, delay=2) as bar,
        ):
            try:
                for fresh in (pool.map if several else map)(answer, chunks):
                    self.n_calls += len(fresh)
                    known.update(fresh)
                    bar.update(len(fresh))
                    for value in fresh.values():
                        if isinstance(value, LanguageModelStop):
                            raise value
            except BaseException:  # what is under way is waited for and kept, nothing else sent
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [known[key] for key in keys]
