"""Which options a policy chooses, and for whom: shares by pattern and group of users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rpp.prompts.patterns import Patterns
from rpp.types import Episode

WIDTH = 90
"""Letters of an option in words."""


@dataclass(frozen=True)
class Group:
    """Some test users.

    Attributes:
        by: What they have in common; empty for all users.
        name: Which of the groups it is.
        members: Whether each user belongs to it, ``(B,)``.
    """

    by: str
    name: str
    members: NDArray[np.bool_]

    @property
    def n_users(self) -> int:
        """Its users."""
        return int(self.members.sum())


@dataclass(frozen=True)
class OptionShares:
    """One option of a pattern.

    Attributes:
        number: From 1.
        words: The option in words, shortened.
        shares: Share of the users of each group who get it.
        is_static: Whether the best static prompt has it.
    """

    number: int
    words: str
    shares: Sequence[float]
    is_static: bool


def user_groups(
    episodes: Sequence[Episode], popularity: NDArray[np.int64] | None = None
) -> list[Group]:
    """All users; thirds by the length of the history, and by how popular its items are.

    Args:
        episodes: ``B`` users.
        popularity: Training interactions of every item; ``None``: not known.
    """
    groups = [Group("", "all", np.ones(len(episodes), bool))]
    lengths = np.array([float(len(episode.history)) for episode in episodes])
    groups += _thirds("items in the history", lengths)
    if popularity is not None:
        taste = [popularity[[item.index for item in e.history]].mean() for e in episodes]
        groups += _thirds("mean popularity of these items", np.array(taste))
    return groups


def _thirds(by: str, values: NDArray[np.float64]) -> list[Group]:
    """Three groups of about equal size; none where too many values are equal."""
    low, high = np.quantile(values, [1 / 3, 2 / 3])
    thirds = [values <= low, (values > low) & (values <= high), values > high]
    if not all(members.any() for members in thirds):
        return []
    ends = [(values[members].min(), values[members].max()) for members in thirds]
    return [
        Group(by, f"{first:,.0f} to {last:,.0f}", members)
        for (first, last), members in zip(ends, thirds, strict=True)
    ]


def option_shares(
    actions: NDArray[np.int64],
    groups: Sequence[Group],
    patterns: Patterns,
    n_candidates: int,
    static: Sequence[int] = (),
) -> Mapping[str, list[OptionShares]]:
    """Shares of all options by pattern; those of a pattern sum to 1 in every group.

    Args:
        actions: Of the last prompts, ``(B, P)``.
        groups: Groups of these users.
        patterns: The options.
        n_candidates: ``M``.
        static: Actions of the best static prompt; empty if there is none.
    """
    return {
        name: [
            OptionShares(
                option + 1,
                patterns.label(name, option, n_candidates, WIDTH),
                [float((actions[group.members, k] == option).mean()) for group in groups],
                bool(static) and static[k] == option and not _adds(patterns, name),
            )
            for option in range(patterns.n_actions[k])
        ]
        for k, name in enumerate(patterns.names)
    }


def _adds(patterns: Patterns, name: str) -> bool:
    """Whether options add to the history of the step before: a static prompt has none of them."""
    return name == "history" and bool(patterns.history.increments)
