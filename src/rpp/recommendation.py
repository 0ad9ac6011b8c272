"""What a policy is asked at request time, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rpp.data.directory import Named
from rpp.types import ReplyStatus


@dataclass(frozen=True)
class Query:
    """One user with a history and some candidates, by the names a caller has for them.

    Attributes:
        history: Items the user has interacted with, oldest first; possibly none.
        candidates: 2 to 100 items to rank.
        user: The user's id; any other user is known by the history alone.
        profile: What is known of gender, age and occupation.
    """

    history: Sequence[Named]
    candidates: Sequence[Named]
    user: str | int | None = None
    profile: Mapping[str, str | int] | None = None


@dataclass(frozen=True)
class Option:
    """One option of a pattern.

    Attributes:
        text: The option in words.
        probability: With which the policy takes it; ``None``: the policy has no probabilities.
    """

    text: str
    probability: float | None


@dataclass(frozen=True)
class ChosenOption:
    """The option of a pattern that was chosen, and all it was chosen from.

    Attributes:
        action: Its number among the options, from 0.
        text: The option in words.
        sentence: What the prompt says; for the history, how many items it shows.
        options: All options; a single one where the pattern is not learnt.
    """

    action: int
    text: str
    sentence: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class PersonalPrompt:
    """The prompt a policy chose for a user.

    Attributes:
        text: As the policy's own language model is asked.
        text_with_list: The same with the candidates listed, for any other language model.
        lists_candidates: Whether :attr:`text` lists them as well.
        patterns: What was chosen, by pattern.
        n_steps: Steps of the episode this is the prompt of.
        is_final: Whether these are all steps the policy plays; not where fewer were asked for or
            the language model failed before.
        unknown: Titles of items the policy has no vector of.
    """

    text: str
    text_with_list: str
    lists_candidates: bool
    patterns: Mapping[str, ChosenOption]
    n_steps: int
    is_final: bool
    unknown: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """What one had better know before using :attr:`text`; empty if nothing."""
        if self.lists_candidates:
            return ""
        return (
            "The prompt does not list the candidates, because they are ranked by the likelihood of"
            " their titles: take text_with_list for another language model."
        )


@dataclass(frozen=True)
class RankedItem:
    """A candidate in a ranking.

    Attributes:
        id: Its id; ``None`` for an item that was named by a title the catalogue does not know.
        title: Its title.
        score: Its log-probability, where the decoding has one.
    """

    id: str | None
    title: str
    score: float | None


@dataclass(frozen=True)
class Cost:
    """What a ranking cost; that of several users asked together is divided evenly.

    Attributes:
        calls: Calls to the language model.
        cache_hits: Prompts answered from the reply cache.
        prompt_tokens: Tokens read.
        reply_tokens: Tokens written.
        cost: Their price, where prices are given.
        seconds: Time of the language model.
    """

    calls: float = 0.0
    cache_hits: float = 0.0
    prompt_tokens: float = 0.0
    reply_tokens: float = 0.0
    cost: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Recommendation:
    """A user's candidates, ranked by the language model.

    Attributes:
        ranking: Best first; empty where the language model failed.
        status: ``valid`` (the reply named all), ``repaired`` (some; the others follow in an
            arbitrary order), ``unusable`` (none) or ``failed``.
        reply: What came back, or the reason of a failure.
        prompt: What was asked.
        cost: What it cost.
    """

    ranking: tuple[RankedItem, ...]
    status: ReplyStatus
    reply: str
    prompt: PersonalPrompt
    cost: Cost
