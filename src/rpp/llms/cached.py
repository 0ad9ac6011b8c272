"""A language model that is asked only what it has not answered before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from rpp.llms.base import LanguageModel, Usage
from rpp.llms.cache import ReplyCache
from rpp.types import LanguageModelError, LanguageModelStop

CHUNK = 64
"""Prompts sent at once to a model that takes batches; kept before the next are sent."""


@dataclass
class Meter:
    """What the language models of a run have cost together.

    Attributes:
        max_calls: Calls after which the run ends; answers from the cache are free.
        n_calls: Prompts the models were asked.
        n_hits: Prompts whose answer was in the cache.
        models: The models.
    """

    max_calls: int | None = None
    n_calls: int = 0
    n_hits: int = 0
    models: list[LanguageModel] = field(default_factory=list)

    @property
    def tokens(self) -> Usage:
        """Tokens read and written, cached answers not counted."""
        used = [model.usage for model in self.models]
        return Usage(sum(u.prompt_tokens for u in used), sum(u.reply_tokens for u in used))

    @property
    def cost(self) -> float:
        """Price of these tokens; 0 where none is given."""
        return sum(model.cost(model.usage) for model in self.models)


class CachedLanguageModel(LanguageModel):
    """A language model that is asked only what it has not answered before.

    Within one call equal prompts are sent once; failures are never kept.

    Args:
        model: The model to ask.
        cache: Where its answers are kept.
        meter: Counts the calls and limits them; by default one of its own, without limit.
    """

    def __init__(self, model: LanguageModel, cache: ReplyCache, meter: Meter | None = None) -> None:
        super().__init__()
        self.model = model
        self.cache = cache
        self.meter = Meter() if meter is None else meter
        if model not in self.meter.models:
            self.meter.models.append(model)

    def beside(self, model: LanguageModel) -> CachedLanguageModel:
        """Another model with the same cache, count and limit."""
        return CachedLanguageModel(model, self.cache, self.meter)

    @property
    def fingerprint(self) -> str:
        """That of the model."""
        return self.model.fingerprint

    def generate(self, prompts: Sequence[str]) -> list[str | LanguageModelError]:
        """Answer every prompt, from the cache where it is known."""
        keys = [self._key("generate", prompt) for prompt in prompts]
        return self._fill(
            keys, prompts, lambda rows: self.model.generate([prompts[r] for r in rows])
        )

    def generate_permutation(
        self, prompts: Sequence[str], options: Sequence[Sequence[str]]
    ) -> list[str | LanguageModelError]:
        """Constrained reply to every prompt, from the cache where it is known."""
        # the word of the first version: another would lose what was cached then
        keys = [
            self._key("permute", prompt, *lines)
            for prompt, lines in zip(prompts, options, strict=True)
        ]
        return self._fill(
            keys,
            prompts,
            lambda rows: self.model.generate_permutation(
                [prompts[r] for r in rows], [options[r] for r in rows]
            ),
        )

    def score(
        self,
        prompts: Sequence[str],
        continuations: Sequence[Sequence[str]],
        response_prefixes: Sequence[str] | None = None,
    ) -> list[list[float] | LanguageModelError]:
        """Scores of every prompt's continuations; their order does not matter to the cache."""
        starts = response_prefixes or [""] * len(prompts)
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

    def cost(self, usage: Usage) -> float:
        """As the model counts."""
        return self.model.cost(usage)

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
        """Answers in the order of ``keys``; asks for unknown ones, similar prompts together.

        Raises:
            LanguageModelStop: If the model will answer no more, or the limit is reached; what was
                answered until then is kept.
        """
        known: dict[str, Any] = self.cache.get(keys)
        first = {key: row for row, key in reversed(list(enumerate(keys))) if key not in known}
        rows = sorted(first.values(), key=lambda row: prompts[row])
        meter = self.meter
        meter.n_hits += len(keys) - len(rows)
        n_left = len(rows) if meter.max_calls is None else meter.max_calls - meter.n_calls
        for fresh in self._ask(rows[:n_left], keys, ask):
            known.update(fresh)
        if n_left < len(rows):
            raise LanguageModelStop(
                f"environment.max_calls: {meter.max_calls} calls to the language model are made"
            )
        return [known[key] for key in keys]

    def _ask(
        self, rows: Sequence[int], keys: Sequence[str], ask: Callable[[list[int]], Iterable[Any]]
    ) -> Iterator[dict[str, Any]]:
        """Ask for some rows and keep the answers as they come."""

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

        several = self.model.concurrency > 1
        size = 1 if several else CHUNK
        chunks = [list(rows[start : start + size]) for start in range(0, len(rows), size)]
        with (
            ThreadPoolExecutor(self.model.concurrency) as pool,
            tqdm(total=len(rows), desc="prompts", leave=False, disable=None, delay=2) as bar,
        ):
            try:
                for fresh in (pool.map if several else map)(answer, chunks):
                    self.meter.n_calls += len(fresh)
                    bar.update(len(fresh))
                    yield fresh
                    for value in fresh.values():
                        if isinstance(value, LanguageModelStop):
                            raise value
            except BaseException:  # what is under way is waited for and kept, nothing else sent
                pool.shutdown(wait=False, cancel_futures=True)
                raise
