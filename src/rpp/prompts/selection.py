"""Selection: which interactions of the history a prompt shows; the paper shows the most recent.

How many are shown is the pattern ``history``. They are always listed oldest first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np

from rpp.types import InputError, Item

Selection = Literal["recent", "similar", "spread"]
"""The most recent; the most similar to any candidate; evenly spread from the first to the last."""

SELECTIONS: tuple[Selection, ...] = get_args(Selection)

Similarity = Callable[[], Sequence[float]]
"""Similarity of every past item of a user to the candidates; only computed where it is needed."""


def check_selections(names: Sequence[str]) -> None:
    """Refuse unknown ways to select, or none.

    Raises:
        InputError: With the known ones.
    """
    if not names:
        raise InputError(f"selection has no options: name any of {', '.join(SELECTIONS)}")
    for name in names:
        if name not in SELECTIONS:
            raise InputError(f"there is no selection {name!r}: name any of {', '.join(SELECTIONS)}")


def select(history: Sequence[Item], n: int, how: str, similarity: Similarity) -> tuple[Item, ...]:
    """``n`` items of a history, oldest first; all where there are fewer.

    Args:
        history: Oldest first.
        n: Number of items.
        how: The selection. Of equally similar items the later ones are taken.
        similarity: Of every past item to the candidates.
    """
    if how == "recent" or n >= len(history):
        return tuple(history[-n:])
    if how == "spread":
        # the last one is always shown; a single item is the last
        places = np.linspace(len(history) - 1, 0, n).round().astype(int)[::-1]
    else:
        order = np.lexsort((np.arange(len(history)), np.asarray(similarity())))
        places = np.sort(order[-n:])
    return tuple(history[k] for k in places)
