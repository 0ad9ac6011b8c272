"""The only place that builds a prompt (paper, section 3.2; the order of its case study)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

from rpp.prompts.evidence import Evidence, evidence_sentences, without_recommenders
from rpp.prompts.options import Answer, filled
from rpp.prompts.patterns import SENTENCES, Patterns
from rpp.prompts.selection import select
from rpp.types import InputError, Item, Request

Layout = Literal["paper", "history_first"]


@dataclass(frozen=True)
class Display:
    """Which parts of an episode a prompt shows; depends on the decoding.

    Attributes:
        show_candidates: Whether the candidates are listed.
        answer: Whether the reply is to consist of titles or of the candidates' identifiers.
        layout: ``paper``: role, profile, history, candidates, reasoning, format.
            ``history_first``: role and profile come after the candidates, so that all prompts of
            a user with the same history length share a prefix, which is computed once.
    """

    show_candidates: bool = True
    answer: Answer = "titles"
    layout: Layout = "paper"


@dataclass(frozen=True)
class Prompt:
    """A prompt for the language model.

    Attributes:
        text: The whole text.
        sentences: The sentence of each pattern in the order of ``Patterns.parts``, the history as
            its length.
        answer: What the reply should consist of.
        n_history: Interactions shown.
        n_dropped: Interactions omitted because they did not fit into the model's context.
        parts: The parts it is composed of: sentences, headings, and titles without numbers.
        chosen: The sentences before a refiner reworded them.
        history: The interactions shown, oldest first.
    """

    text: str
    sentences: tuple[str, ...]
    answer: Answer = "titles"
    n_history: int = 0
    n_dropped: int = 0
    parts: tuple[str, ...] = ()
    chosen: tuple[str, ...] = ()
    history: tuple[Item, ...] = ()


def identifier(position: int) -> str:
    """Name of the candidate at a position from 0: A, B, ... Z, AA, AB, ...

    Letters, because language models number their answers 1..M whatever labels the list has.
    """
    name = ""
    position += 1
    while position:
        position, letter = divmod(position - 1, 26)
        name = chr(ord("A") + letter) + name
    return name


def compose(
    episodes: Sequence[Request],
    patterns: Patterns,
    actions: Sequence[Sequence[int]],
    lengths: Sequence[int],
    display: Display,
    *,
    fits: Callable[[str], bool] = lambda _: True,
    refine: Callable[[str], str] = lambda sentence: sentence,
    evidence: Evidence | None = None,
) -> list[Prompt]:
    """Compose every user's prompt.

    Args:
        episodes: ``B`` users.
        patterns: The options the actions point into.
        actions: ``(B, P)`` indices in the order of ``Patterns.names``.
        lengths: ``l_t`` of every user, the number of interactions to show; all where there are
            fewer.
        display: Which parts are shown. A user without a history has no heading of one either.
        fits: Whether a text fits into the language model's context. Until it does, the oldest
            interaction is omitted; candidates never are.
        refine: Rewrites a chosen sentence (RPP+); it is not applied to profile, history,
            candidates and evidence.
        evidence: Ranks the candidates for the pattern ``evidence``; the list displayed keeps its
            order. Selects similar interactions for the pattern ``selection``.

    Returns:
        One prompt per user.

    Raises:
        InputError: If a prompt does not fit even with one interaction, or needs evidence and none
            is given.
    """
    options = [patterns.chosen(chosen) for chosen in actions]
    told = evidence_sentences(
        patterns.evidence, [each.get("evidence", 0) for each in options], episodes, evidence
    )
    return [
        _compose(episode, patterns, chosen, length, display, fits, refine, sentences, evidence)
        for episode, chosen, length, sentences in zip(episodes, options, lengths, told, strict=True)
    ]


def _compose(
    episode: Request,
    patterns: Patterns,
    options: Mapping[str, int],
    length: int,
    display: Display,
    fits: Callable[[str], bool],
    refine: Callable[[str], str],
    told: Sequence[str],
    evidence: Evidence | None,
) -> Prompt:
    def fill(text: str) -> str:
        return filled(text, {"n_candidates": len(episode.candidates)})

    chosen = {name: patterns.describe(name, options[name], display.answer) for name in SENTENCES}
    sentences = {name: fill(refine(text)) for name, text in chosen.items()}
    about = {}
    if patterns.profile is not None:
        about["profile"] = patterns.profile.sentence(options["profile"], episode.profile)
    opening = [_said(text) for text in (sentences["role"], *about.values()) if text]
    request = (*told, sentences["reasoning"], sentences["format"])
    closing = [_said(text) for text in request if text]
    if patterns.evidence is not None:
        about["evidence"] = " ".join(told)
    how = "recent"
    if patterns.selection is not None:
        about["selection"] = how = patterns.selection[options["selection"]]

    @cache
    def similarity() -> Sequence[float]:
        if evidence is None:
            raise without_recommenders("shows the past items most similar to the candidates")
        return evidence.similarities(episode)

    candidates = []
    if display.show_candidates:
        names = [identifier(k) for k in range(len(episode.candidates))]
        candidates = _listed(fill(patterns.candidates_heading), names, episode.candidates)
    wanted = min(length, len(episode.history))
    for n_history in range(wanted, min(wanted, 1) - 1, -1):
        numbers = [str(number) for number in range(1, n_history + 1)]
        past = select(episode.history, n_history, how, similarity) if n_history else ()
        history = _listed(fill(patterns.history_heading), numbers, past) if past else []
        if display.layout == "paper":
            lines = [*opening, *history, *candidates, *closing]
        else:
            lines = [*history, *candidates, *opening, *closing]
        text = "\n".join(line.text for line in lines)
        if fits(text):
            shown = {**about, "history": str(n_history)}
            originals = {name: fill(sentence) for name, sentence in chosen.items()} | shown
            return Prompt(
                text,
                tuple((sentences | shown)[pattern] for pattern in patterns.parts),
                display.answer,
                n_history,
                n_dropped=wanted - n_history,
                parts=tuple(line.part for line in lines),
                chosen=tuple(originals[pattern] for pattern in patterns.parts),
                history=past,
            )
    raise InputError(
        f"the prompt of {episode.name} does not fit the language model's context even with at most"
        " one past item: use a model with a longer context or fewer candidates"
    )


class _Line(NamedTuple):
    """A line of a prompt, and the title in it without its number."""

    text: str
    part: str


def _said(sentence: str) -> _Line:
    return _Line(sentence, sentence)


def _listed(heading: str, marks: Sequence[str], items: Sequence[Item]) -> list[_Line]:
    entries = zip(marks, items, strict=True)
    return [_said(heading), *(_Line(f"{mark}. {item.title}", item.title) for mark, item in entries)]
