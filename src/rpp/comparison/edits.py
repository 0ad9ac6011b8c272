"""Edits of an instruction: delete, swap, paraphrase, add (Prasad et al., GrIPS, EACL 2023).

An instruction is a prompt's role and reasoning sentence. History, candidates and the format
sentence are no part of it. Everything here is a function of instructions; chance comes from the
generator handed in. Departures from the publication: phrases come from signs and connectives in
the place of a constituency parser, the last phrase is never deleted, and paraphrases are those of
a language model instead of PEGASUS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from rpp.prompts.refine import judge
from rpp.types import LanguageModelError

T = TypeVar("T")

Place = tuple[int, int]
"""A text of an instruction and a phrase of it, or the gap before that phrase."""

SIGNS = (",", ";", ":", ".", "!", "?")
CONNECTIVES = frozenset(
    ("and", "but", "or", "then", "so", "that", "which", "who", "because", "if", "while", "by")
)


def split(text: str) -> tuple[str, ...]:
    """Phrases of a text: a new one after a sign and before a connective.

    Of several connectives in a row the first begins the phrase. Texts are cut at blanks alone, so
    that a placeholder stays whole and the phrases, joined by blanks, are the text again.
    """
    phrases: list[list[str]] = []
    before = ""
    for word in text.split(" ") if text else ():
        begins = before.endswith(SIGNS) or word.lower() in CONNECTIVES
        if not phrases or (begins and before.lower() not in CONNECTIVES):
            phrases.append([])
        phrases[-1].append(word)
        before = word
    return tuple(" ".join(words) for words in phrases)


@dataclass(frozen=True)
class Instruction:
    """Texts in phrases.

    Attributes:
        phrases: Those of every text, for example role and reasoning.
        deleted: Phrases that were deleted on the way here, for :func:`add`.
    """

    phrases: tuple[tuple[str, ...], ...]
    deleted: tuple[str, ...] = ()

    @classmethod
    def of(cls, *texts: str) -> Instruction:
        """Texts, split."""
        return cls(tuple(map(split, texts)))

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts, possibly empty."""
        return tuple(map(" ".join, self.phrases))

    @property
    def places(self) -> list[Place]:
        """Where phrases are."""
        return [(text, k) for text, found in enumerate(self.phrases) for k in range(len(found))]

    @property
    def gaps(self) -> list[Place]:
        """Where one more phrase can go: before each, and at the end of each text."""
        return [(text, k) for text, found in enumerate(self.phrases) for k in range(len(found) + 1)]

    def at(self, place: Place) -> str:
        """The phrase at a place."""
        text, k = place
        return self.phrases[text][k]


def _put(
    instruction: Instruction, place: Place, phrases: Sequence[str], n_replaced: int = 1
) -> Instruction:
    """Phrases in the place of some."""
    text, k = place
    there = instruction.phrases[text]
    texts = list(instruction.phrases)
    texts[text] = (*there[:k], *phrases, *there[k + n_replaced :])
    return replace(instruction, phrases=tuple(texts))


def delete(instruction: Instruction, place: Place) -> Instruction:
    """Without one phrase, which is remembered."""
    left = _put(instruction, place, ())
    return replace(left, deleted=(*instruction.deleted, instruction.at(place)))


def swap(instruction: Instruction, place: Place, other: Place) -> Instruction:
    """Two phrases swapped, within a text or between them."""
    first, second = instruction.at(place), instruction.at(other)
    return _put(_put(instruction, place, (second,)), other, (first,))


def add(instruction: Instruction, number: int, gap: Place) -> Instruction:
    """A deleted phrase put in again, which is then no longer remembered as deleted."""
    deleted = instruction.deleted
    back = _put(instruction, gap, (deleted[number],), n_replaced=0)
    return replace(back, deleted=(*deleted[:number], *deleted[number + 1 :]))


def paraphrase(
    instruction: Instruction, place: Place, reply: str | LanguageModelError
) -> Instruction | None:
    """One phrase as a language model words it; ``None`` if that would break the prompt.

    What breaks it says :func:`rpp.prompts.refine.refusal`; every phrase is held to the rules of a
    reasoning sentence, because it may have been one before a swap.
    """
    phrase = instruction.at(place)
    if isinstance(reply, LanguageModelError):
        return None
    judged = judge("reasoning", phrase, reply)
    # models answer in whole sentences, phrases are parts of one
    words = judged.rewritten if phrase.endswith(".") else judged.rewritten.rstrip(".")
    return None if judged.reason or not words else _put(instruction, place, split(words))


@dataclass(frozen=True)
class Rewording:
    """A paraphrase to ask a language model for: the phrase at a place, and which answer of many."""

    place: Place
    draw: int


def draw_edit(
    instruction: Instruction, rng: np.random.Generator, n_paraphrases: int
) -> Instruction | Rewording:
    """One edit; every kind that is possible is equally probable.

    Args:
        instruction: What is edited.
        rng: Source of randomness.
        n_paraphrases: Different wordings asked of one phrase; 0 means none.
    """
    places = instruction.places
    n_kinds = 1 + len(_kinds(instruction))
    if places and n_paraphrases and rng.integers(n_kinds) == 0:
        return Rewording(_pick(places, rng), int(rng.integers(n_paraphrases)))
    return draw_wordless_edit(instruction, rng)


def draw_wordless_edit(instruction: Instruction, rng: np.random.Generator) -> Instruction:
    """One edit that needs no language model; the same instruction where there is none."""
    kinds = _kinds(instruction)
    return _pick(kinds, rng)(instruction, rng) if kinds else instruction


def _kinds(
    instruction: Instruction,
) -> list[Callable[[Instruction, np.random.Generator], Instruction]]:
    return [
        *([_delete_one, _swap_two] if len(instruction.places) > 1 else []),
        *([_add_one] if instruction.deleted else []),
    ]


def _delete_one(instruction: Instruction, rng: np.random.Generator) -> Instruction:
    return delete(instruction, _pick(instruction.places, rng))


def _swap_two(instruction: Instruction, rng: np.random.Generator) -> Instruction:
    places = instruction.places
    first, second = rng.choice(len(places), 2, replace=False)
    return swap(instruction, places[first], places[second])


def _add_one(instruction: Instruction, rng: np.random.Generator) -> Instruction:
    number = int(rng.integers(len(instruction.deleted)))
    return add(instruction, number, _pick(instruction.gaps, rng))


def _pick(options: Sequence[T], rng: np.random.Generator) -> T:
    return options[int(rng.integers(len(options)))]
