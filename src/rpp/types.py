"""Types shared by all packages: items, episodes, rankings, choices, errors.

Every type validates its fields, so that no later stage has to check again.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Literal
from zlib import crc32

import numpy as np

if TYPE_CHECKING:  # the data preparation starts without waiting for torch
    from torch import Tensor

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
HELD_OUT: tuple[Split, ...] = ("validation", "test")

MAX_SEED = 2**63 - 1
"""The largest seed that every generator takes."""

PROFILE = ("gender", "age", "occupation")
"""User attributes: the keys of :attr:`Episode.profile`."""

ReplyStatus = Literal["valid", "repaired", "unusable", "failed"]
"""Whether the reply named all candidates, some, none, or the call failed."""


class InputError(Exception):
    """An input of the user is invalid; the message is one sentence with value and remedy."""


class LanguageModelError(RuntimeError):
    """A call got no answer: lost connection, timeout, refusal, out of memory.

    Raised for a whole batch, or returned instead of the reply of one prompt. Either way the
    prompt counts as failed, is masked in the update and asked again next time; it is never a
    reward of 0.
    """


class LanguageModelStop(LanguageModelError):
    """No further call of this run will be answered: the budget is spent or the key refused.

    Returned instead of a reply, like its base class. It ends the run with its message as soon as
    the other replies are cached.
    """


class TargetAccessError(RuntimeError):
    """A test target was read outside :func:`final_scoring`."""


_scoring: ContextVar[bool] = ContextVar("final_scoring", default=False)


@contextmanager
def final_scoring() -> Iterator[None]:
    """Permit reading the targets of test episodes; used only by the final scoring."""
    token = _scoring.set(True)
    try:
        yield
    finally:
        _scoring.reset(token)


@dataclass(frozen=True, slots=True)
class Item:
    """An item of the catalogue: its row in ``items.parquet`` and the title a prompt shows."""

    index: int
    title: str


@dataclass(frozen=True)
class Episode:
    """One user facing one fixed list of candidates (paper, section 2).

    Attributes:
        user: Row of the user in ``users.parquet``.
        history: The user's interactions before the target, oldest first; never empty.
        candidates: ``M`` items in the order shown, exactly one of them the target.
        withheld: Position of the target in ``candidates``, from 0. Read :attr:`target` instead.
        split: Which interaction is withheld. Only ``"test"`` is guarded.
        user_id: The user's name in the raw data.
        profile: Known attributes of the user (gender, age, occupation), possibly none.

    Raises:
        InputError: If the history is empty, the target is no position of the list, an item stands
            twice in the list, or two candidates share a title and so could not be told apart.
    """

    user: int
    history: tuple[Item, ...]
    candidates: tuple[Item, ...]
    withheld: int = field(repr=False)
    split: Split = "train"
    user_id: str = ""
    profile: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse an episode that cannot be played."""
        name = self.user_id or str(self.user)
        if not self.history:
            raise InputError(f"user {name} has an empty history: raise min_interactions")
        if not 0 <= self.withheld < len(self.candidates):
            raise InputError(
                f"user {name}: target position {self.withheld} is not among"
                f" {len(self.candidates)} candidates"
            )
        if len({item.index for item in self.candidates}) < len(self.candidates):
            raise InputError(f"user {name} has an item twice among the candidates")
        titles = [normalise(item.title) for item in self.candidates]
        if len(set(titles)) < len(titles):
            twice = next(title for title in titles if titles.count(title) > 1)
            raise InputError(
                f"user {name} has two candidates with the title {twice!r}:"
                " rename one in the titles table or draw other candidates"
            )

    @property
    def target(self) -> int:
        """Position of the target in :attr:`candidates`, from 0.

        Raises:
            TargetAccessError: For a test episode outside :func:`final_scoring`: nothing that
                trains, selects or stops may know a test target.
        """
        if self.split == "test" and not _scoring.get():
            raise TargetAccessError(
                f"the test target of user {self.user_id or self.user} was read before the final"
                " scoring: test users may not influence any choice"
            )
        return self.withheld


@dataclass(frozen=True)
class Ranking:
    """The ranker's answer for one episode.

    Attributes:
        order: Positions in ``Episode.candidates``, best first: a permutation of all ``M``, or
            empty if the language model failed to answer.
        n_named: How many of them, from the top, the reply itself named; the rest was appended.
        status: ``valid`` (all named), ``repaired`` (some), ``unusable`` (none) or ``failed``.
        reply: The text that came back, untouched; the reason of a failure.
        scores: Score of every candidate in the order shown, of decodings that have them.
    """

    order: tuple[int, ...]
    n_named: int
    status: ReplyStatus
    reply: str = ""
    scores: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a ranking that is no permutation or contradicts its own status."""
        if sorted(self.order) != list(range(len(self.order))):
            raise ValueError(f"not a permutation of the candidates: {self.order}")
        n_candidates = len(self.order)
        if not 0 <= self.n_named <= n_candidates or self.status != status_of(
            self.n_named, n_candidates
        ):
            raise ValueError(
                f"{self.n_named} of {n_candidates} named contradicts status {self.status!r}"
            )

    @property
    def failed(self) -> bool:
        """Whether the call failed, so that there is no reward."""
        return self.status == "failed"


@dataclass(frozen=True)
class Choice:
    """What a policy chose for ``B`` users.

    Attributes:
        actions: Index into each pattern's options, ``(B, P)``.
    """

    actions: Tensor


def arbitrary_order(episode: Episode, seed: int) -> list[int]:
    """Candidate positions in an order independent of target and display.

    Used for candidates missing from a reply and to break ties. It depends only on the seed, the
    user and the set of candidates.
    """
    by_item = sorted(range(len(episode.candidates)), key=lambda k: episode.candidates[k].index)
    rng = np.random.default_rng([seed, crc32((episode.user_id or str(episode.user)).encode())])
    return [by_item[k] for k in rng.permutation(len(by_item))]


def status_of(n_named: int, n_candidates: int) -> ReplyStatus:
    """Status of a ranking with ``n_named`` of ``n_candidates`` named by the reply."""
    if n_candidates == 0:
        return "failed"
    if n_named == n_candidates:
        return "valid"
    return "repaired" if n_named else "unusable"


def failed_ranking(reason: str) -> Ranking:
    """The ranking of a failed language-model call."""
    return Ranking((), 0, "failed", reason)


_VARIATION = dict.fromkeys([*range(0x180B, 0x180E), *range(0xFE00, 0xFE10)])
"""Variation selectors: how a sign is drawn, not which one it is."""
_NO_MARKS = {0x307, *_VARIATION}
"""Those, and the dot that case folding leaves of the Turkish capital I."""


@lru_cache(maxsize=1 << 18)
def normalise(text: str) -> str:
    """Title for comparison: case folded, with one space for all but letters and digits.

    Combining marks belong to their letter (Hindi vowels are some). A title without any letter or
    digit, such as ``!!!`` or an emoji, stays as it is.
    """
    text = unicodedata.normalize("NFC", text).casefold()
    words = " ".join("".join(_letters(text)).split())
    return words or " ".join(text.translate(_VARIATION).split())


def _is_mark(sign: str) -> bool:
    return unicodedata.category(sign) in ("Mn", "Mc") and ord(sign) not in _NO_MARKS


def _letters(text: str) -> Iterator[str]:
    """Letters and digits with their marks, a space for any other sign."""
    within = False
    for sign in text:
        within = sign.isalnum() or (within and _is_mark(sign))
        yield sign if within else " "
