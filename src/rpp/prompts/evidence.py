"""Evidence: what recommenders say of the candidates, as sentences of the prompt.

The paper has no such pattern. Who ranks the candidates is not known here: rankings reach
:func:`rpp.prompts.compose.compose` as data, through the protocol :class:`Evidence`, so prompts do
not depend on recommenders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rpp.prompts.options import filled, placeholders
from rpp.types import InputError, Request

SEPARATOR = "; "
"""Between titles, which may contain commas."""

GRADE = ", "
"""Between a title and its grade."""

Order = tuple[int, ...]
"""Positions of a user's candidates, best first."""


@dataclass(frozen=True)
class EvidenceSource:
    """A recommender and the sentence that names its best candidates.

    Attributes:
        sentence: With the placeholder ``{titles}``.
        class_path: The recommender, a subclass of ``rpp.baselines.base.Recommender``.
        init_args: Its arguments.
        grades: Words that tell how strongly a title is recommended: each with the z-score among
            the user's candidates above which it is used, the highest that applies. Titles below
            all are not named. Empty: titles alone.
    """

    sentence: str
    class_path: str
    init_args: Mapping[str, Any] = field(default_factory=dict)
    grades: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a sentence that does not name the titles, and bounds that are no order."""
        if placeholders(self.sentence) != ["titles"]:
            raise InputError(
                f"evidence is worded {self.sentence!r}: write {{titles}} once, where they go"
            )
        bounds = list(self.grades.values())
        if bounds != sorted(set(bounds), reverse=True):
            raise InputError(f"grades are {dict(self.grades)}: give the highest z-score first")

    def grade(self, z_score: float) -> str | None:
        """The word for a title; ``None``: it is not named."""
        return next((word for word, bound in self.grades.items() if z_score > bound), None)


@dataclass(frozen=True)
class EvidencePattern:
    """Which recommenders' best candidates a prompt names.

    Attributes:
        sources: The recommenders by name.
        options: The actions: for each, the number of candidates named by source. ``{}``: none.
    """

    sources: Mapping[str, EvidenceSource]
    options: tuple[Mapping[str, int], ...]

    def __post_init__(self) -> None:
        """Refuse a pattern without options, unknown sources, or no candidate."""
        if not self.options:
            raise InputError("evidence has no options: give at least one, {} for no evidence")
        for name, k in (pair for option in self.options for pair in option.items()):
            if name not in self.sources:
                raise InputError(
                    f"evidence has no source {name!r}: it has {', '.join(self.sources) or 'none'}"
                )
            if k < 1:
                raise InputError(f"evidence names the first {k} of {name}: name at least 1")

    def describe(self, action: int) -> str:
        """An option in words."""
        named = (f"{name} top {k}" for name, k in self.options[action].items())
        return ", ".join(named) or "nothing"

    def sentences(self, action: int, titles: Mapping[str, Sequence[str]]) -> list[str]:
        """The sentences of an action, one per source in the option's order.

        A source that names no candidate has none.

        Args:
            action: The option.
            titles: What each source would name, best first.
        """
        return [
            filled(self.sources[name].sentence, {"titles": SEPARATOR.join(titles[name][:k])})
            for name, k in self.options[action].items()
            if titles[name]
        ]


class Evidence(Protocol):
    """Ranks candidates for the sentences of evidence; blind to targets and displayed order.

    It tells as well how similar past items are to the candidates, for the pattern ``selection``.
    """

    @property
    def fingerprint(self) -> str:
        """Identifies recommenders, their arguments, and the data they are fitted to."""

    def orders(self, source: str, episodes: Sequence[Request]) -> list[Order]:
        """Order of every user's candidates by a source, from history and candidates.

        Args:
            source: Name of the source.
            episodes: ``B`` users; their targets are not looked at.

        Returns:
            Positions of the candidates that the source knows; the others are never named.
        """

    def z_scores(self, source: str, episodes: Sequence[Request]) -> list[dict[int, float]]:
        """Z-scores of the candidates that :meth:`orders` gives, by position, in its order."""

    def similarities(self, episode: Request) -> Sequence[float]:
        """Similarity of every past item to the candidates; larger is more similar.

        Args:
            episode: The user, whose target is not looked at.
        """


def evidence_sentences(
    pattern: EvidencePattern | None,
    options: Sequence[int],
    episodes: Sequence[Request],
    evidence: Evidence | None,
) -> list[list[str]]:
    """Sentences of evidence of every user; each source is asked once for all its users.

    Args:
        pattern: The options; ``None``: there is no evidence.
        options: The option of every user.
        episodes: ``B`` users.
        evidence: Ranks the candidates; may be missing where no option names any.

    Raises:
        InputError: If an option needs evidence and there is none.
    """
    if pattern is None:
        return [[] for _ in episodes]
    said: list[dict[str, list[str]]] = [{} for _ in episodes]
    for source in pattern.sources:
        rows = [row for row, k in enumerate(options) if source in pattern.options[k]]
        if not rows:
            continue
        if evidence is None:
            raise without_recommenders(f"names the candidates of {source}")
        titles = _titles(pattern, source, [episodes[row] for row in rows], evidence)
        for row, some in zip(rows, titles, strict=True):
            said[row][source] = some
    return [pattern.sentences(option, known) for option, known in zip(options, said, strict=True)]


def _titles(
    pattern: EvidencePattern, name: str, episodes: Sequence[Request], evidence: Evidence
) -> list[list[str]]:
    """The titles that a source would name to every user, best first, with their grades."""
    source = pattern.sources[name]
    if not source.grades:
        return [
            [episode.candidates[k].title for k in order]
            for episode, order in zip(episodes, evidence.orders(name, episodes), strict=True)
        ]
    return [
        [
            f"{episode.candidates[k].title}{GRADE}{grade}"
            for k, z_score in scores.items()
            if (grade := source.grade(z_score)) is not None
        ]
        for episode, scores in zip(episodes, evidence.z_scores(name, episodes), strict=True)
    ]


def without_recommenders(what: str) -> InputError:
    """What is to be said where a prompt needs recommenders and there are none."""
    return InputError(
        f"a prompt {what}, but no recommenders are at hand: use patterns without that here"
    )
