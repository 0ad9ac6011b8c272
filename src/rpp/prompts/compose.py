"""The only place that builds a prompt (paper, section 3.2; the order of its case study)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rpp.prompts.options import Answer
from rpp.prompts.patterns import SENTENCES, Patterns
from rpp.types import Episode, InputError, Item

Layout = Literal["paper", "history_first"]


@dataclass(frozen=True)
class Display:
    """What of an episode a prompt shows; the decoding decides.

    Attributes:
        show_candidates: Whether the candidates are listed.
        answer: Whether the reply is to consist of titles or of the candidates' identifiers.
        layout: ``paper``: role, profile, history, candidates, reasoning, format.
            ``history_first``: role and profile stand behind the candidates, so that all prompts
            of a user with one history length begin alike and that part is computed once for all.
    """

    show_candidates: bool = True
    answer: Answer = "titles"
    layout: Layout = "paper"


@dataclass(frozen=True)
class Prompt:
    """What the language model is sent.

    Attributes:
        text: The whole text.
        sentences: The sentence of each pattern in the order of ``Patterns.parts``, the history as
            its length.
        answer: What the reply should consist of.
        n_history: Interactions shown.
        n_dropped: Interactions left out because the model's context had no room for them.
        chosen: The sentences as the patterns file has them, before a refiner reworded any.
    """

    text: str
    sentences: tuple[str, ...]
    answer: Answer = "titles"
    n_history: int = 0
    n_dropped: int = 0
    chosen: tuple[str, ...] = ()


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
        actions: ``(B, P)`` indices in the order of ``Patterns.names``.
        lengths: ``l_t`` of every user, the number of most recent interactions to show.
        display: What is shown.
        fits: Whether the language model's context has room for a text. While it has not, the
            oldest interaction is left out; candidates never are.
        refine: Rewrites a chosen sentence (RPP+); profile, history and candidates never pass
            through it.

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

    options = patterns.chosen(actions)
    worded = {name: patterns.describe(name, options[name], display.answer) for name in SENTENCES}
    chosen = {name: fill(text) for name, text in worded.items()}
    sentences = {name: fill(refine(text)) for name, text in worded.items()}
    profile = ""
    if patterns.profile is not None:
        profile = patterns.profile.sentence(options["profile"], episode.profile)
    candidates = ""
    if display.show_candidates:
        lines = [f"{identifier(k)}. {item.title}" for k, item in enumerate(episode.candidates)]
        candidates = "\n".join([fill(patterns.candidates_heading), *lines])
    wanted = min(length, len(episode.history))
    for n_history in range(wanted, 0, -1):
        history = "\n".join(
            [fill(patterns.history_heading), *_numbered(episode.history[-n_history:])]
        )
        opening = [sentences["role"], profile]
        facts = (
            [*opening, history, candidates]
            if display.layout == "paper"
            else [history, candidates, *opening]
        )
        parts = [*facts, sentences["reasoning"], sentences["format"]]
        text = "\n".join(part for part in parts if part)
        if fits(text):
            own = {"profile": profile, "history": str(n_history)}
            return Prompt(
                text,
                tuple((sentences | own)[part] for part in patterns.parts),
                display.answer,
                n_history,
                wanted - n_history,
                tuple((chosen | own)[part] for part in patterns.parts),
            )
    raise InputError(
        f"the prompt of user {episode.user_id or episode.user} does not fit the language model's"
        " context even with one past item: use a model with a longer context or fewer candidates"
    )


def _numbered(items: Sequence[Item]) -> list[str]:
    return [f"{number}. {item.title}" for number, item in enumerate(items, start=1)]
