"""Patterns: the editable parts of a prompt and the options of each (paper, section 3.2).

A domain (movies, games, music) is one YAML file. The number of sentences of a pattern is the
number of actions of its agent; nothing else has to be told.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from rpp.types import InputError

Answer = Literal["titles", "identifiers"]
"""What a reply is asked to consist of."""

PATTERNS = ("role", "history", "reasoning", "format")
PLACEHOLDERS = {"n_candidates"}


@dataclass(frozen=True)
class HistoryPattern:
    """How many of the most recent interactions are shown (paper, section 3.2.2).

    Attributes:
        start: Length before the first step, ``l_0``; the paper uses 1.
        increments: Actions of the paper: how many more to show, ``l_t = l_{t-1} + a``; the window
            never shrinks.
        lengths: Actions of the variant: absolute lengths. Give one of the two.
    """

    start: int = 1
    increments: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse two kinds of actions at once, none, or lengths that show nothing."""
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
class Patterns:
    """The whole action space and the fixed text around it.

    Attributes:
        history_heading: Stands before the list of past items.
        candidates_heading: Stands before the list of candidates.
        role: Role-playing sentences.
        history: How much history an action shows.
        reasoning: Reasoning-guidance sentences.
        format: Output-format sentences.
    """

    history_heading: str
    candidates_heading: str
    role: tuple[str, ...]
    history: HistoryPattern
    reasoning: tuple[str, ...]
    format: tuple[FormatSentence, ...]

    def __post_init__(self) -> None:
        """Refuse a pattern without options and placeholders nobody fills."""
        for name in ("role", "reasoning", "format"):
            if not getattr(self, name):
                raise InputError(f"the pattern {name!r} has no sentence: give at least one")
        for text in self.texts():
            unknown = set(re.findall(r"{([^{}]*)}", text)) - PLACEHOLDERS
            if unknown:
                raise InputError(
                    f"unknown placeholder {{{min(unknown)}}} in {text!r}: only"
                    f" {', '.join(f'{{{name}}}' for name in sorted(PLACEHOLDERS))} is filled"
                )

    def texts(self) -> list[str]:
        """Every text of the file, in order."""
        formats = [text for pair in self.format for text in (pair.titles, pair.identifiers)]
        return [
            self.history_heading, self.candidates_heading, *self.role, *self.reasoning, *formats,
        ]  # fmt: skip

    @property
    def n_actions(self) -> tuple[int, ...]:
        """Number of options of every pattern, in the order of ``PATTERNS``."""
        return (len(self.role), self.history.n_actions, len(self.reasoning), len(self.format))

    @property
    def fingerprint(self) -> str:
        """Names wording and order of all options: a policy fits only the file it learned on."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def describe(self, pattern: str, action: int, answer: Answer = "titles") -> str:
        """One option in words, for logs and charts."""
        if pattern == "history":
            if self.history.lengths:
                return f"last {self.history.lengths[action]}"
            return f"+{self.history.increments[action]}"
        option = getattr(self, pattern)[action]
        return str(getattr(option, answer) if isinstance(option, FormatSentence) else option)


def load_patterns(path: str | Path) -> Patterns:
    """Read a domain's patterns from YAML.

    Raises:
        InputError: If the file is missing or malformed, a key is unknown or missing, a pattern is
            empty, or a sentence is no text.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"no patterns file {path}: name one, e.g. conf/patterns/movies.yaml"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise InputError(
            f"{path}{line}: not valid YAML in UTF-8: quote sentences with : or #"
        ) from error
    try:
        fields = _keys(content, Patterns)
        return Patterns(
            history_heading=_text(fields["history_heading"]),
            candidates_heading=_text(fields["candidates_heading"]),
            role=tuple(map(_text, _list(fields["role"]))),
            history=_history(fields["history"]),
            reasoning=tuple(map(_text, _list(fields["reasoning"]))),
            format=tuple(map(_format, _list(fields["format"]))),
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _keys(content: Any, kind: type[Any], *, partial: bool = False) -> Mapping[str, Any]:
    names = list(kind.__dataclass_fields__)
    if not isinstance(content, Mapping):
        raise InputError(f"expected the keys {', '.join(names)}, found {content!r}")
    for key in content:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
            raise InputError(f"unknown key {key!r}: {hint}")
    missing = [name for name in names if name not in content]
    if missing and not partial:
        raise InputError(f"missing key {missing[0]!r}")
    return content


def _history(value: Any) -> HistoryPattern:
    fields: dict[str, Any] = {
        key: _count(entry) if key == "start" else tuple(map(_count, _list(entry)))
        for key, entry in _keys(value, HistoryPattern, partial=True).items()
    }
    return HistoryPattern(**fields)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list | None):
        raise InputError(f"expected a list, found {value!r}: begin every entry with a dash")
    return value or []


def _count(value: Any) -> int:
    if type(value) is not int:
        raise InputError(f"expected a whole number, found {value!r}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"expected a sentence, found {value!r}: put it in quotes")
    return value.strip()


def _format(value: Any) -> FormatSentence:
    if isinstance(value, str):
        return FormatSentence(value.strip(), value.strip())
    fields = _keys(value, FormatSentence)
    return FormatSentence(_text(fields["titles"]), _text(fields["identifiers"]))
