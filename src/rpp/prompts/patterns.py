"""Patterns: the editable parts of a prompt and the options of each (paper, section 3.2).

A domain (movies, games, music) is one YAML file. The number of sentences of a pattern is the
number of actions of its agent. A pattern with a single option needs no agent.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import Any

from rpp.prompts.evidence import EvidencePattern
from rpp.prompts.options import (
    Answer,
    FormatSentence,
    HistoryPattern,
    ManualPrompt,
    ProfilePattern,
    check_braces,
    check_distinct,
    filled,
)
from rpp.prompts.reading import (
    evidence_pattern,
    format_sentences,
    history_pattern,
    keys,
    manual_prompt,
    parsed_with_base,
    profile_pattern,
    section,
    text,
    texts,
)
from rpp.prompts.selection import check_selections
from rpp.types import InputError

log = logging.getLogger(__name__)

SENTENCES = ("role", "reasoning", "format")
"""Patterns whose options are sentences."""

ADDED = ("profile", "evidence", "selection")
"""Patterns that a file may have besides the paper's four."""


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
        profile: Parts of the user's profile; ``None``: not used.
        evidence: Best candidates by recommenders; ``None``: not used.
        selection: Which interactions of the history are shown; ``None``: the most recent.
        manual: Options of the patterns that are not learnt.
    """

    history_heading: str
    candidates_heading: str
    role: tuple[str, ...]
    history: HistoryPattern
    reasoning: tuple[str, ...]
    format: tuple[FormatSentence, ...]
    profile: ProfilePattern | None = None
    evidence: EvidencePattern | None = None
    selection: tuple[str, ...] | None = None
    manual: ManualPrompt | None = None

    def __post_init__(self) -> None:
        """Refuse patterns without options, or with one twice, wrong braces, a wrong manual."""
        for name in SENTENCES:
            if not getattr(self, name):
                raise InputError(f"the pattern {name!r} has no sentence: give at least one")
            check_distinct(name, getattr(self, name))
        check_distinct("history", self.history.increments or self.history.lengths)
        for sentence in self.texts():
            check_braces(sentence)
        if self.selection is not None:
            check_selections(self.selection)
        if self.manual is not None:
            self._check_manual(self.manual)

    def _check_manual(self, manual: ManualPrompt) -> None:
        for name in (part for part in self.parts if part not in ("history", "profile")):
            number, n = getattr(manual, name), self.n_options(name)
            if not 1 <= number <= n:
                raise InputError(f"manual {name} is {number}: choose one from 1 to {n}")
        if manual.history < 1:
            raise InputError(f"manual history is {manual.history}: show at least 1 interaction")
        unknown = set(manual.profile) - set(self.profile.parts if self.profile else ())
        if unknown:
            raise InputError(f"manual profile tells {min(unknown)!r}, the section profile does not")

    def texts(self) -> list[str]:
        """Every text of the file except profile and evidence, in order."""
        formats = [each for pair in self.format for each in (pair.titles, pair.identifiers)]
        return [
            self.history_heading, self.candidates_heading, *self.role, *self.reasoning, *formats,
        ]  # fmt: skip

    @property
    def parts(self) -> tuple[str, ...]:
        """The patterns of a prompt, including those with a single option."""
        added = (name for name in ADDED if getattr(self, name) is not None)
        return ("role", "history", "reasoning", "format", *added)

    @property
    def names(self) -> tuple[str, ...]:
        """The ``P`` patterns with several options: one agent each, actions in this order."""
        return tuple(part for part in self.parts if self.n_options(part) > 1)

    @property
    def n_actions(self) -> tuple[int, ...]:
        """Number of options of each pattern in :attr:`names`."""
        return tuple(self.n_options(name) for name in self.names)

    @property
    def needs_evidence(self) -> bool:
        """Whether some prompts need recommenders, or similarities of items."""
        return self.evidence is not None or "similar" in (self.selection or ())

    def n_options(self, part: str) -> int:
        """Number of options of one pattern."""
        if part == "history":
            return self.history.n_actions
        if part == "profile":
            return 0 if self.profile is None else len(self.profile.actions)
        if part == "evidence":
            return 0 if self.evidence is None else len(self.evidence.options)
        if part == "selection":
            return len(self.selection or ())
        return len(getattr(self, part))

    def chosen(self, actions: Sequence[int]) -> dict[str, int]:
        """The option of every pattern, from ``P`` actions; the only one if there is no choice."""
        return dict.fromkeys(self.parts, 0) | dict(zip(self.names, actions, strict=True))

    def first_lengths(self, n_users: int) -> list[int]:
        """``l_0`` of every user, the history length before the first action."""
        return [self.history.start] * n_users

    def next_lengths(self, actions: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[int]:
        """``l_t`` of every user after ``(B, P)`` actions; shorter histories are shown whole."""
        return [
            self.history.next_length(length, self.chosen(row)["history"])
            for row, length in zip(actions, lengths, strict=True)
        ]

    @property
    def fingerprint(self) -> str:
        """Hash of wording and order of all options: a policy fits only its own patterns."""
        content = asdict(self)
        del content["manual"]
        for name in ADDED:
            if content[name] is None:
                del content[name]
        for source in content.get("evidence", {"sources": {}})["sources"].values():
            if not source["grades"]:
                del source["grades"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def content(self) -> dict[str, Any]:
        """The same patterns as a file's content, for :func:`load_patterns`."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        for name in ("history", "profile", "manual"):
            content[name] = {k: each for k, each in (content[name] or {}).items() if each}
        return {name: each for name, each in content.items() if each}

    def describe(self, pattern: str, action: int, answer: Answer = "titles") -> str:
        """One option in words, for logs and charts."""
        if pattern == "history":
            if self.history.lengths:
                return f"last {self.history.lengths[action]}"
            return f"+{self.history.increments[action]}"
        if pattern == "profile" and self.profile is not None:
            return ", ".join(self.profile.actions[action]) or "nothing"
        if pattern == "evidence" and self.evidence is not None:
            return self.evidence.describe(action)
        option = getattr(self, pattern)[action]
        return str(getattr(option, answer) if isinstance(option, FormatSentence) else option)

    def label(self, pattern: str, action: int, n_candidates: int, width: int = 60) -> str:
        """One option in words, shortened, for charts and tables."""
        words = self.describe(pattern, action) or f"no {pattern}"
        return shorten(filled(words, {"n_candidates": n_candidates}), width, placeholder=" …")

    def learning(self, names: Sequence[str]) -> Patterns:
        """The same patterns, of which only some are learnt (paper, Tables 5 to 7).

        Args:
            names: The patterns to learn; the others are fixed to the manual prompt.

        Raises:
            InputError: If there is no such pattern, or no manual prompt.
        """
        for name in names:
            if name not in self.parts:
                raise InputError(
                    f"there is no pattern {name!r} to learn: the file has {', '.join(self.parts)}"
                )
        fixed: dict[str, Any] = {}
        for part in set(self.parts) - set(names):
            if self.manual is None:
                raise InputError(
                    "the patterns file does not tell what patterns say that are not learnt: add a"
                    " section `manual`"
                )
            option = getattr(self.manual, part)
            if part == "history":
                fixed[part] = HistoryPattern(lengths=(option,))
            elif part == "profile" and self.profile is not None:
                fixed[part] = replace(self.profile, choices=(option,))
            elif part == "evidence" and self.evidence is not None:
                fixed[part] = replace(self.evidence, options=(self.evidence.options[option - 1],))
            else:
                fixed[part] = (getattr(self, part)[option - 1],)
        return replace(self, manual=None, **fixed)

    def first(self, n: int) -> Patterns:
        """The same with ``n`` sentences of each pattern at most (paper, Figure 6b).

        They are the first of the file; the manual prompt's sentence replaces the last of them if
        it comes later. So the options of ``n`` are among those of ``n + 1``.

        Args:
            n: Sentences of role, reasoning and format; a pattern with fewer keeps all.

        Raises:
            InputError: If ``n`` is below 1.
        """
        if n < 1:
            raise InputError(f"n_sentences is {n}: keep at least 1 sentence of each pattern")
        kept: dict[str, Any] = {name: getattr(self, name)[:n] for name in SENTENCES}
        if self.manual is not None:
            for name in SENTENCES:
                if (number := getattr(self.manual, name)) > n:
                    kept[name] = (*kept[name][:-1], getattr(self, name)[number - 1])
            numbers = {name: min(getattr(self.manual, name), n) for name in SENTENCES}
            kept["manual"] = replace(self.manual, **numbers)
        return replace(self, **kept)

    def with_lengths(self, lengths: Sequence[int]) -> Patterns:
        """The same with absolute history lengths, instead of the file's.

        Raises:
            InputError: If there is none, or one below 1.
        """
        return replace(self, history=HistoryPattern(self.history.start, lengths=tuple(lengths)))

    def with_evidence(self, number: int) -> Patterns:
        """The same with another option of evidence in the manual prompt.

        Raises:
            InputError: If there is no manual prompt, or no such option.
        """
        if self.manual is None or self.evidence is None:
            raise InputError(
                f"option {number} of evidence is asked for: take a patterns file with the sections"
                " `evidence` and `manual`, such as conf/patterns/movies_evidence.yaml"
            )
        return replace(self, manual=replace(self.manual, evidence=number))

    def check_profiles(self, profiles: Iterable[Mapping[str, str]], data_name: str) -> None:
        """Refuse a data set without the user attributes of the profile pattern.

        Raises:
            InputError: If no user has an attribute.
        """
        told = {part for choice in self.profile.actions for part in choice} if self.profile else ()
        for part in sorted(set(told).difference(*profiles)):
            raise InputError(
                f"the prompts tell the user's {part}, but the data set {data_name!r} knows no"
                f" user's {part}: take a patterns file that does not, or give data.custom.profiles"
            )


def load_patterns(
    path: str | Path | Mapping[str, Any],
    n_sentences: int | None = None,
    history_lengths: Sequence[int] | None = None,
) -> Patterns:
    """Read a domain's patterns from YAML.

    Args:
        path: The file, or its content.
        n_sentences: Sentences of each pattern at most, see :meth:`Patterns.first`.
        history_lengths: History lengths instead of the file's.

    Raises:
        InputError: If the file is missing or malformed, a key is unknown or missing, a pattern is
            empty, or a sentence is no text.
    """
    content = path if isinstance(path, Mapping) else parsed_with_base(Path(path))
    try:
        given = keys(content, Patterns)
        patterns = Patterns(
            history_heading=text(given["history_heading"]),
            candidates_heading=text(given["candidates_heading"]),
            role=section(given, "role", texts),
            history=section(given, "history", history_pattern),
            reasoning=section(given, "reasoning", texts),
            format=section(given, "format", format_sentences),
            profile=section(given, "profile", profile_pattern) if "profile" in given else None,
            selection=section(given, "selection", texts) if "selection" in given else None,
            evidence=section(given, "evidence", evidence_pattern) if "evidence" in given else None,
            manual=section(given, "manual", manual_prompt) if "manual" in given else None,
        )
    except InputError as error:
        place = "patterns" if isinstance(path, Mapping) else path
        raise InputError(f"{place}: {error}") from None
    if n_sentences is not None:
        patterns = patterns.first(n_sentences)
    if history_lengths is None:
        return patterns
    if (own := patterns.history.lengths) and own != tuple(history_lengths):
        _warn_of_lengths(path, own, tuple(history_lengths))
    return patterns.with_lengths(history_lengths)


@cache
def _warn_of_lengths(path: Path, own: tuple[int, ...], given: tuple[int, ...]) -> None:
    """Say once that the configuration overrules a file's history lengths."""
    log.warning(
        "%s: its history lengths %s are overruled by model.history_lengths %s: set that to null to"
        " use them",
        path, list(own), list(given),
    )  # fmt: skip
