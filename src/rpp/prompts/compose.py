"""The only place that builds a prompt (paper, section 3.2; the order of its case study)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rpp.prompts.patterns import PATTERNS, Answer, Patterns
from rpp.types import Episode, InputError


@dataclass(frozen=True)
class Display:
    """What of an episode a prompt shows; the decoding decides.

    Attributes:
        show_candidates: Whether the candidates are listed.
        answer: Whether the reply is to consist of titles or of the candidates' identifiers.
    """

    show_candidates: bool = True
    answer: Answer = "titles"


@dataclass(frozen=True)
class Prompt:
    """What the language model is sent.

    Attributes:
        text: The whole text.
        sentences: The sentence of each pattern in the order of ``PATTERNS``, the history as its
            length.
        answer: What the reply should consist of.
        n_history: Interactions shown.
        n_dropped: Interactions left out because the model's context had no room for them.
        parts: What it is put together from: sentences, headings, and titles without numbers.
    """

    text: str
    sentences: tuple[str, ...]
    answer: Answer = "titles"
    n_history: int = 0
    n_dropped: int = 0
    parts: tuple[str, ...] = ()


def identifier(position: int) -> str:
    """Name of the candidate at a position from 0: A, B, ... Z, AA, AB, ...

    Letters, because language models number their answers 1..M whatever the list showed.
    """
    name = ""
    position += 1
    while position:
        position, letter = divmod(position - 1, 26)
        name = chr(ord("A") + letter) + name
    return name


def compose(
    episodes: Sequence[Episode],
    patterns: Patterns,
    actions: Sequence[Sequence[int]],
    lengths: Sequence[int],
    display: Display,
    *,
    fits: Callable[[str], bool] = lambda _: True,
    refine: Callable[[str], str] = lambda sentence: sentence,
) -> list[Prompt]:
    """Put every user's prompt together.

    Args:
        episodes: ``B`` users.
        patterns: The options the actions point into.
        actions: ``(B, P)`` indices in the order of ``PATTERNS``.
        lengths: ``l_t`` of every user, the number of most recent interactions to show.
        display: What is shown.
        fits: Whether the language model's context has room for a text. While it has not, the
            oldest interaction is left out; candidates never are.
        refine: Rewrites a chosen sentence (RPP+); history and candidates never pass through it.

    Returns:
        One prompt per user.

    Raises:
        InputError: If a prompt does not fit even with one interaction.
    """
    return [
        _compose(episode, patterns, tuple(chosen), length, display, fits, refine)
        for episode, chosen, length in zip(episodes, actions, lengths, strict=True)
    ]


def _compose(
    episode: Episode,
    patterns: Patterns,
    actions: tuple[int, ...],
    length: int,
    display: Display,
    fits: Callable[[str], bool],
    refine: Callable[[str], str],
) -> Prompt:
    def fill(text: str) -> str:
        return text.replace("{n_candidates}", str(len(episode.candidates)))

    chosen = dict(zip(PATTERNS, actions, strict=True))
    sentences = {
        name: fill(refine(patterns.describe(name, chosen[name], display.answer)))
        for name in ("role", "reasoning", "format")
    }
    candidates, candidate_parts = "", []
    if display.show_candidates:
        heading = fill(patterns.candidates_heading)
        titles = [item.title for item in episode.candidates]
        lines = [f"{identifier(k)}. {title}" for k, title in enumerate(titles)]
        candidates, candidate_parts = "\n".join([heading, *lines]), [heading, *titles]
    history_heading = fill(patterns.history_heading)
    wanted = min(length, len(episode.history))
    for n_history in range(wanted, 0, -1):
        titles = [item.title for item in episode.history[-n_history:]]
        history = "\n".join([history_heading, *_numbered(titles)])
        blocks = [
            sentences["role"], history, candidates, sentences["reasoning"], sentences["format"],
        ]  # fmt: skip
        text = "\n".join(block for block in blocks if block)
        if fits(text):
            shown = {**sentences, "history": str(n_history)}
            parts = [
                sentences["role"], history_heading, *titles, *candidate_parts,
                sentences["reasoning"], sentences["format"],
            ]  # fmt: skip
            return Prompt(
                text,
                tuple(shown[name] for name in PATTERNS),
                display.answer,
                n_history,
                wanted - n_history,
                tuple(part for part in parts if part),
            )
    raise InputError(
        f"the prompt of user {episode.user_id or episode.user} does not fit the language model's"
        " context even with one past item: use a model with a longer context or fewer candidates"
    )


def _numbered(titles: Sequence[str]) -> list[str]:
    return [f"{number}. {title}" for number, title in enumerate(titles, start=1)]
