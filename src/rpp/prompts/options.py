"""Options of the patterns that are not plain sentences."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rpp.types import PROFILE, InputError

PLACEHOLDERS = {"n_candidates"}
"""What is filled in a sentence."""

Answer = Literal["titles", "identifiers"]
"""The requested content of a reply."""


_PLACEHOLDER = re.compile(r"{{|}}|{([^{}]*)}")


def placeholders(text: str) -> list[str]:
    """Names of a sentence's placeholders; ``{{`` and ``}}`` stand for braces."""
    return [match[1] for match in _PLACEHOLDER.finditer(text) if match[1] is not None]


def has_lone_brace(text: str) -> bool:
    """Whether a brace neither belongs to a placeholder nor is doubled."""
    return bool(re.search("[{}]", _PLACEHOLDER.sub("", text)))


def filled(text: str, values: Mapping[str, object]) -> str:
    """A sentence with its placeholders filled; one that is not among the values stays."""

    def replace(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        return str(values.get(match[1], match[0]))

    return _PLACEHOLDER.sub(replace, text)


@dataclass(frozen=True)
class HistoryPattern:
    """How many of the most recent interactions are shown (paper, section 3.2.2).

    Attributes:
        start: Length before the first step, ``l_0``; the paper uses 1.
        increments: Actions of the paper, additional interactions: ``l_t = l_{t-1} + a``; the
            history never gets shorter.
        lengths: Alternative actions, absolute lengths. Give one of the two.
    """

    start: int = 1
    increments: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse both kinds of actions at once, neither, or lengths below 1."""
        if bool(self.increments) == bool(self.lengths):
            raise InputError("the history pattern needs either `increments` or `lengths`")
        if self.start < 1:
            raise InputError(f"history start is {self.start}: show at least 1 interaction")
        if any(n < 0 for n in self.increments) or any(n < 1 for n in self.lengths):
            raise InputError(
                f"history increments {self.increments} must be 0 or more, lengths {self.lengths}"
                " 1 or more"
            )

    @property
    def n_actions(self) -> int:
        """Number of options."""
        return len(self.increments or self.lengths)

    def next_length(self, length: int, action: int) -> int:
        """Length shown after an action, ``l_t``."""
        return self.lengths[action] if self.lengths else length + self.increments[action]


@dataclass(frozen=True)
class FormatSentence:
    """One output format, worded for either kind of answer (paper, section 3.2.4)."""

    titles: str
    identifiers: str


@dataclass(frozen=True)
class ProfilePattern:
    """Which parts of the user's profile a prompt contains (paper, section 4.7, Table 7).

    Attributes:
        gender: Sentence with the placeholder ``{gender}``. Empty: never used.
        age: Likewise with ``{age}``.
        occupation: Likewise with ``{occupation}``.
        choices: The actions, sets of parts. By default every subset, so that three parts make
            2^3 actions; the first one is empty.
    """

    gender: str = ""
    age: str = ""
    occupation: str = ""
    choices: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        """Refuse a profile without parts, or a part without its placeholder."""
        if not self.parts:
            raise InputError(f"the profile tells nothing: give any of {', '.join(PROFILE)}")
        for part in self.parts:
            text = getattr(self, part)
            if placeholders(text) != [part]:
                raise InputError(
                    f"the profile's {part} is worded {text!r}: write {{{part}}} once, where it goes"
                )
        for part in {part for choice in self.choices for part in choice} - set(self.parts):
            raise InputError(f"the profile has no {part!r}: it tells {', '.join(self.parts)}")

    @property
    def parts(self) -> tuple[str, ...]:
        """The available parts."""
        return tuple(part for part in PROFILE if getattr(self, part))

    @property
    def actions(self) -> tuple[tuple[str, ...], ...]:
        """The parts of each action."""
        if self.choices:
            return self.choices
        return tuple(
            tuple(part for bit, part in enumerate(self.parts) if action >> bit & 1)
            for action in range(2 ** len(self.parts))
        )

    def sentence(self, action: int, profile: Mapping[str, str]) -> str:
        """The profile sentences of an action; parts unknown for the user are omitted."""
        return " ".join(
            filled(getattr(self, part), {part: " ".join(profile[part].split())})
            for part in self.actions[action]
            if part in profile
        )


@dataclass(frozen=True)
class ManualPrompt:
    """The prompt one would write by hand; patterns that are not learnt are fixed to it.

    Attributes:
        role: Number of its role sentence, counted from 1.
        history: Interactions shown.
        reasoning: Number of its reasoning sentence.
        format: Number of its format sentence.
        profile: Parts of the profile it contains.
        evidence: Number of its option of evidence.
        selection: Number of its way to select the history.
    """

    role: int
    history: int
    reasoning: int
    format: int
    profile: tuple[str, ...] = ()
    evidence: int = 1
    selection: int = 1


def check_distinct(pattern: str, options: Sequence[object]) -> None:
    """Refuse an option that a pattern has twice: its agent could not tell them apart.

    Raises:
        InputError: With the numbers of both.
    """
    for number, option in enumerate(options, 1):
        if (first := options.index(option) + 1) < number:
            raise InputError(
                f"the options {first} and {number} of the pattern {pattern!r} are the same"
                f" ({option!r}): leave one of them out"
            )


def check_braces(sentence: str) -> None:
    """Refuse a placeholder that is not filled, and a brace that opens or closes none.

    Raises:
        InputError: With the sentence.
    """
    only = (
        f"only {', '.join(f'{{{name}}}' for name in sorted(PLACEHOLDERS))} is filled,"
        " and {{ and }} stand for braces"
    )
    if unknown := set(placeholders(sentence)) - PLACEHOLDERS:
        raise InputError(f"unknown placeholder {{{min(unknown)}}} in {sentence!r}: {only}")
    if has_lone_brace(sentence):
        raise InputError(f"a brace without its partner in {sentence!r}: {only}")
