"""The environment: prompts to rankings through a frozen language model (paper, section 3.1)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import Literal

from rpp.llms.base import LanguageModel
from rpp.llms.cache import ReplyCache
from rpp.llms.cached import CachedLanguageModel, Meter
from rpp.parsing import parse_reply
from rpp.prompts.compose import Display, Layout, Prompt, identifier
from rpp.types import (
    InputError,
    LanguageModelError,
    Ranking,
    Request,
    arbitrary_order,
    failed_ranking,
    status_of,
)

Decoding = Literal["generate", "constrained", "first_token", "likelihood"]

REPLY_START = "1."
"""How a numbered list begins; titles are scored right after it."""

RESERVED_TOKENS = 64
"""Room kept for identifiers or titles where the reply is not generated freely."""

TEMPLATE_TOKENS = 128
"""More than a chat template adds to a prompt."""


@dataclass
class Counters:
    """Cost of ranking and parsing results, since the start of the run."""

    calls: int = 0
    cache_hits: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0
    cost: float = 0.0
    seconds: float = 0.0
    valid: int = 0
    repaired: int = 0
    unusable: int = 0
    failed: int = 0
    unmatched_lines: int = 0
    shortened_histories: int = 0

    def as_dict(self) -> dict[str, float]:
        """Plain numbers by name."""
        return {name: float(value) for name, value in asdict(self).items()}


class Ranker:
    """A language model, a decoding of rankings, and counters.

    Args:
        llm: The frozen language model.
        decoding: ``generate``: free text, parsed (the paper). ``constrained``: only
            unused identifiers can be generated. ``first_token``: candidates by the
            log-probability of their identifier as the reply's first token. ``likelihood``:
            candidates by the log-probability of their title as the reply's first line.
        show_candidates: Whether prompts list the candidates. Only ``likelihood`` can do without;
            its ranking is then free of position bias by construction.
        per_character: Whether ``likelihood`` divides a title's log-probability by its length.
            Without, long titles are at a disadvantage, unless the model is tuned to know how
            likely each title is as a whole.
        layout: Order of a prompt's parts, see :class:`rpp.prompts.compose.Display`.
        seed: Seed of the order in which candidates missing from a reply are appended.
        cache: The reply cache; by default in memory for this run.
        max_calls: Calls to the language model after which the run ends.
    """

    def __init__(
        self,
        llm: LanguageModel,
        decoding: Decoding = "generate",
        *,
        show_candidates: bool = True,
        per_character: bool = True,
        layout: Layout = "paper",
        seed: int = 0,
        cache: ReplyCache | None = None,
        max_calls: int | None = None,
    ) -> None:
        if not show_candidates and decoding != "likelihood":
            raise InputError(
                f"decoding {decoding!r} needs the candidates in the prompt: set"
                " environment.show_candidates to true or environment.decoding to likelihood"
            )
        if seed < 0:
            raise InputError(f"environment.seed is {seed}: it must be 0 or more")
        cache = ReplyCache(None) if cache is None else cache
        self.llm = CachedLanguageModel(llm, cache, Meter(max_calls))
        self.decoding = decoding
        self.per_character = per_character
        self.seed = seed
        self.display = Display(
            show_candidates,
            "titles" if decoding in ("generate", "likelihood") else "identifiers",
            layout,
        )
        self._read = Counters()

    @property
    def counters(self) -> Counters:
        """Reply counts and costs so far, including models with shared counters."""
        meter = self.llm.meter
        return Counters(
            **{
                **asdict(self._read),
                "calls": meter.n_calls,
                "cache_hits": meter.n_hits,
                **asdict(meter.tokens),
                "cost": meter.cost,
            }
        )

    @property
    def n_prompts(self) -> int:
        """Prompts needed so far, whether asked or found in the cache."""
        return self.llm.meter.n_calls + self.llm.meter.n_hits

    @property
    def settings(self) -> dict[str, str]:
        """Settings its rankings depend on, with the model's fingerprint."""
        return {
            "language model": self.llm.fingerprint,
            "decoding": self.decoding,
            "candidates": "shown" if self.display.show_candidates else "not shown",
            "layout": self.display.layout,
            "per character": str(self.per_character),
            "seed": str(self.seed),
        }

    def with_list(self) -> Ranker:
        """The same ranker with prompts that list the candidates: one model, cache and count."""
        listing = copy.copy(self)
        listing.display = replace(self.display, show_candidates=True)
        return listing

    def fits(self, text: str) -> bool:
        """Whether the model's context has room for a prompt and its reply."""
        limit = self.llm.context_length
        if limit is None:
            return True
        free = self.decoding == "generate"
        limit -= self.llm.max_reply_tokens if free else RESERVED_TOKENS
        # no token is shorter than a byte: most prompts need not be tokenised to be known to fit
        return len(text.encode()) + TEMPLATE_TOKENS <= limit or self.llm.count_tokens(text) <= limit

    def rank(self, prompts: Sequence[Prompt], episodes: Sequence[Request]) -> list[Ranking]:
        """Rank every user's candidates.

        Args:
            prompts: One per user.
            episodes: ``B`` users; their targets are not looked at.

        Returns:
            One complete ranking per user in the order of the episodes, empty where the language
            model failed.

        Raises:
            LanguageModelError: If it failed for all of several users; earlier replies are in the
                cache.
        """
        rankings = self.attempt(prompts, episodes)
        if len(rankings) > 1 and all(ranking.failed for ranking in rankings):
            raise LanguageModelError(
                f"the language model answered none of {len(rankings)} prompts:"
                f" {rankings[0].reply}. Everything answered before is kept: once the model is back,"
                " run the same command again, with --ckpt_path last if an epoch was finished"
            )
        return rankings

    def attempt(self, prompts: Sequence[Prompt], episodes: Sequence[Request]) -> list[Ranking]:
        """The same, also where the language model failed for all.

        Raises:
            LanguageModelStop: If it will answer no more.
        """
        started = perf_counter()
        texts = [prompt.text for prompt in prompts]
        rankings = self._rank(texts, prompts, episodes)
        self._read.seconds += perf_counter() - started
        for ranking in rankings:
            setattr(self._read, ranking.status, getattr(self._read, ranking.status) + 1)
        self._read.shortened_histories += sum(prompt.n_dropped > 0 for prompt in prompts)
        return rankings

    def _rank(
        self, texts: list[str], prompts: Sequence[Prompt], episodes: Sequence[Request]
    ) -> list[Ranking]:
        if self.decoding == "generate":
            replies = self.llm.generate(texts)
        elif self.decoding == "constrained":
            replies = self.llm.generate_permutation(texts, [_identifiers(e) for e in episodes])
        else:
            return self._rank_by_score(texts, episodes)
        return [
            self._from_reply(reply, prompt, episode)
            for reply, prompt, episode in zip(replies, prompts, episodes, strict=True)
        ]

    def _rank_by_score(self, texts: list[str], episodes: Sequence[Request]) -> list[Ranking]:
        if self.decoding == "first_token":
            rows = self.llm.score(texts, [_identifiers(episode) for episode in episodes])
        else:
            titles = [[item.title for item in episode.candidates] for episode in episodes]
            end = "" if self.per_character else "\n"  # a whole title: no other one goes on from it
            sums = self.llm.score(
                texts,
                [[f" {title}{end}" for title in row] for row in titles],
                [REPLY_START] * len(texts),
            )
            rows = [
                row
                if isinstance(row, LanguageModelError)
                else [
                    score / (1 + len(title)) if self.per_character else score
                    for score, title in zip(row, names, strict=True)
                ]
                for row, names in zip(sums, titles, strict=True)
            ]
        return [
            failed_ranking(str(scores))
            if isinstance(scores, LanguageModelError)
            else self._from_scores(scores, episode)
            for scores, episode in zip(rows, episodes, strict=True)
        ]

    def _from_scores(self, scores: Sequence[float], episode: Request) -> Ranking:
        order = sorted(arbitrary_order(episode, self.seed), key=lambda k: -scores[k])
        reply = "\n".join(
            f"{rank}. {episode.candidates[k].title} ({scores[k]:.3f})"
            for rank, k in enumerate(order, start=1)
        )
        n_named = sum(math.isfinite(score) for score in scores)
        status = status_of(n_named, len(order))
        finite = tuple(scores) if status == "valid" else ()
        return Ranking(tuple(order), n_named, status, reply, finite)

    def _from_reply(
        self, reply: str | LanguageModelError, prompt: Prompt, episode: Request
    ) -> Ranking:
        if isinstance(reply, LanguageModelError):
            return failed_ranking(str(reply))
        named, unmatched = parse_reply(
            reply, episode.candidates, identifiers=prompt.answer == "identifiers"
        )
        self._read.unmatched_lines += unmatched
        rest = [k for k in arbitrary_order(episode, self.seed) if k not in named]
        order = (*named, *rest)
        return Ranking(order, len(named), status_of(len(named), len(order)), reply)


def _identifiers(episode: Request) -> list[str]:
    return [identifier(position) for position in range(len(episode.candidates))]
