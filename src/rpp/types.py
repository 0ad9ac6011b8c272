"""Types shared by all packages: items, requests, episodes, rankings, choices, errors.

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
"""User attributes: the keys of :attr:`Request.profile`."""

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


UNKNOWN = -1
"""Number of an item or a user that the policy's data do not know."""


@dataclass(frozen=True, slots=True)
class Item:
    """An item: its row in ``items.parquet`` and the title a prompt shows.

    An item with the row :data:`UNKNOWN` has no collaborative vector and is ranked by its title.
    """

    index: int
    title: str


@dataclass(frozen=True)
class Request:
    """One user and a list of candidates to rank: all that a prompt and its ranking need.

    Attributes:
        user: Row of the user in ``users.parquet``, or :data:`UNKNOWN`.
        history: The user's interactions, oldest first; possibly none.
        candidates: ``M`` items in the order shown.
        user_id: The user's name in the raw data.
        profile: Known attributes of the user (gender, age, occupation), possibly none.
        number: Which of the user's episodes: 0 has the latest target, 1 the one before it.

    Raises:
        InputError: If an item stands twice in the list, or two candidates share a title and so
            could not be told apart.
    """

    user: int
    history: tuple[Item, ...]
    candidates: tuple[Item, ...]
    user_id: str = field(default="", kw_only=True)
    profile: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    number: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse candidates that cannot be told apart."""
        known = [item.index for item in self.candidates if item.index != UNKNOWN]
        if len(set(known)) < len(known):
            raise InputError(f"{self.name} has an item twice among the candidates")
        titles = [normalise(item.title) for item in self.candidates]
        if len(set(titles)) < len(titles):
            twice = next(title for title in titles if titles.count(title) > 1)
            raise InputError(
                f"{self.name} has two candidates with the title {twice!r}:"
                " rename one in the titles table or draw other candidates"
            )

    @property
    def key(self) -> tuple[int, ...]:
        """What random draws of this episode depend on; for a user's latest one the user alone."""
        return (self.user, self.number) if self.number else (self.user,)

    @property
    def name(self) -> str:
        """The user, in messages."""
        if self.user_id or self.user != UNKNOWN:
            return f"user {self.user_id or self.user}"
        return "the user"


@dataclass(frozen=True)
class Episode(Request):
    """One user facing one fixed list of candidates with a known target (paper, section 2).

    Attributes:
        withheld: Position of the target in ``candidates``, from 0. Read :attr:`target` instead.
        split: Which interaction is withheld. Only ``"test"`` is guarded.

    Raises:
        InputError: If the history is empty, the target is no position of the list, or the list is
            none that a :class:`Request` can have.
    """

    withheld: int = field(repr=False)
    split: Split = "train"

    def __post_init__(self) -> None:
        """Refuse an episode that cannot be played."""
        if not self.history:
            raise InputError(f"{self.name} has an empty history: raise min_interactions")
        if not 0 <= self.withheld < len(self.candidates):
            raise InputError(
                f"{self.name}: target position {self.withheld} is not among"
                f" {len(self.candidates)} candidates"
            )
        super().__post_init__()

    @property
    def target(self) -> int:
        """Position of the target in :attr:`candidates`, from 0.

        Raises:
            TargetAccessError: For a test episode outside :func:`final_scoring`: nothing that
                trains, selects or stops may know a test target.
        """
        if self.split == "test" and not _scoring.get():
            raise TargetAccessError(
                f"the test target of {self.name} was read before the final"
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
        if self.scores and len(self.scores) != n_candidates:
            raise ValueError(f"{len(self.scores)} scores for {n_candidates} candidates")

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


def arbitrary_order(episode: Request, seed: int) -> list[int]:
    """Candidate positions in an order independent of target and display.

    Used for candidates missing from a reply and to break ties. It depends only on the seed, the
    user, which of the user's episodes it is, and the set of candidates.
    """
    items = [(item.index, item.title) for item in episode.candidates]
    by_item = sorted(range(len(items)), key=items.__getitem__)
    name = crc32((episode.user_id or str(episode.user)).encode())
    rng = np.random.default_rng([seed, name, *episode.key[1:]])
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
