"""A language model that is asked only what it has not answered before."""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from traceback import extract_tb
from typing import Any, NoReturn

from tqdm import tqdm

from rpp.llms.base import LanguageModel, Usage, first_line
from rpp.llms.cache import ReplyCache
from rpp.types import InputError, LanguageModelError, LanguageModelStop

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


@dataclass(frozen=True)
class Contract:
    """What a method of a language model has to return; nothing else enters the cache.

    Attributes:
        method: Its name.
        words: What it returns, in words.
        holds: Whether something is the answer to the prompt of a row.
    """

    method: str
    words: str
    holds: Callable[[Any, int], bool]

    def ask(self, model: LanguageModel, answer: Callable[[], Any]) -> Any:
        """Ask a model; an error in a class of the user's own is told with its place.

        Raises:
            InputError: If such a class raises anything but the errors of a failed call.
        """
        try:
            return answer()
        except (LanguageModelError, InputError):
            raise
        except Exception as error:
            if type(model).__module__.startswith("rpp."):
                raise
            at = extract_tb(error.__traceback__)[-1]
            raise InputError(
                f"{self._name(model)} raised {type(error).__name__}: {first_line(error)}"
                f" ({at.filename}, line {at.lineno}): mend it, or raise a LanguageModelError where"
                " a call has failed"
            ) from error

    def check_number(self, model: LanguageModel, answers: object, n_prompts: int) -> None:
        """Refuse what is no list of one answer per prompt.

        Raises:
            InputError: If it is none.
        """
        if not isinstance(answers, list | tuple):
            self._refuse(model, answers)
        if len(answers) != n_prompts:
            self._refuse(model, f"{len(answers)} answers to {n_prompts} prompts")

    def check(self, model: LanguageModel, answer: object, row: int) -> None:
        """Refuse what is neither an answer nor an error in its place.

        Raises:
            InputError: If it is neither.
        """
        if not isinstance(answer, LanguageModelError) and not self.holds(answer, row):
            self._refuse(model, answer)

    def _refuse(self, model: LanguageModel, found: object) -> NoReturn:
        raise InputError(
            f"{self._name(model)} must return {self.words}, or a"
            f" LanguageModelError in its place, and returned {reprlib.repr(found)}"
        )

    def _name(self, model: LanguageModel) -> str:
        kind = type(model)
        return f"{kind.__module__}.{kind.__qualname__}.{self.method}"


def _are_scores(scores: object, n: int) -> bool:
    """Whether these are ``n`` numbers; minus infinity is one."""
    if not isinstance(scores, list | tuple) or len(scores) != n:
        return False
    numbers = [each for each in scores if isinstance(each, float | int)]
    return len(numbers) == n and not any(isinstance(x, bool) or math.isnan(x) for x in numbers)


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
            keys,
            prompts,
            lambda rows: self.model.generate([prompts[r] for r in rows]),
            Contract("generate", "one text per prompt", lambda reply, _: isinstance(reply, str)),
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
            Contract(
                "generate_permutation",
                "one text per prompt, its options separated by line breaks",
                lambda reply, row: (
                    isinstance(reply, str) and sorted(reply.split("\n")) == sorted(options[row])
                ),
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
            Contract(
                "score",
                "one list of numbers per prompt, one number per continuation",
                lambda scores, row: _are_scores(scores, len(sets[row])),
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
        contract: Contract,
    ) -> list[Any]:
        """Answers in the order of ``keys``; asks for unknown ones, similar prompts together.

        Raises:
            InputError: If the model returns what is no answer.
            LanguageModelStop: If the model will answer no more, or the limit is reached; what was
                answered until then is kept.
        """
        found = self.cache.get(keys)
        known: dict[str, Any] = {
            key: found[key]
            for row, key in enumerate(keys)
            if key in found and contract.holds(found[key], row)
        }
        first = {key: row for row, key in reversed(list(enumerate(keys))) if key not in known}
        rows = sorted(first.values(), key=lambda row: prompts[row])
        meter = self.meter
        meter.n_hits += len(keys) - len(rows)
        n_left = len(rows) if meter.max_calls is None else meter.max_calls - meter.n_calls
        for fresh in self._ask(rows[:n_left], keys, ask, contract):
            known.update(fresh)
        if n_left < len(rows):
            raise LanguageModelStop(
                f"environment.max_calls: {meter.max_calls} calls to the language model are made"
            )
        return [known[key] for key in keys]

    def _ask(
        self,
        rows: Sequence[int],
        keys: Sequence[str],
        ask: Callable[[list[int]], Iterable[Any]],
        contract: Contract,
    ) -> Iterator[dict[str, Any]]:
        """Ask for some rows and keep the answers as they come."""

        def answer(some: list[int]) -> dict[str, Any]:
            """Ask and keep what is answered, in the thread that asks: no interrupt loses it."""
            try:
                answers = contract.ask(self.model, lambda: ask(some))
            except LanguageModelError as error:
                answers = [error] * len(some)
            contract.check_number(self.model, answers, len(some))
            fresh = dict(zip(some, answers, strict=True))
            kept = {keys[row]: value for row, value in fresh.items() if contract.holds(value, row)}
            if kept:
                self.cache.put(kept)
            for row, value in fresh.items():
                contract.check(self.model, value, row)
            return {keys[row]: value for row, value in fresh.items()}

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
