"""Training sequences: every user's interactions cut into windows, batched by length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rpp.types import InputError

PAD = -1
"""Pads a window to the length of its batch."""

Interactions = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Users, ascending, and items, a user's oldest first; shapes ``(n_interactions,)``."""


def cut_windows(
    users: NDArray[np.int64], length: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide each user's sequence into windows with ``length`` inputs and as many targets.

    A window begins with the item before its first target, so every interaction except a user's
    first is predicted exactly once. If a sequence needs several windows, the cuts are shifted at
    random.

    Args:
        users: User of each interaction, ascending.
        length: Items a window reads.
        rng: Source of randomness.

    Returns:
        First interaction of each window and its number of interactions, 2 to ``length + 1``.
    """
    counts = np.bincount(users)
    begins = np.cumsum(counts) - counts
    places = np.arange(len(users)) - begins[users]
    shifts = rng.integers(length, size=len(counts)) * (counts > length + 1)
    predicted = np.flatnonzero(places > 0)
    chunk = (places[predicted] - 1 + shifts[users[predicted]]) // length
    new = np.ones(len(predicted), dtype=bool)
    new[1:] = (np.diff(users[predicted]) != 0) | (np.diff(chunk) != 0)
    firsts = np.flatnonzero(new)
    lengths = np.diff(np.append(firsts, len(predicted))) + 1
    return predicted[firsts] - 1, lengths


class WindowBatches:
    """Batches of windows, cut and shuffled again in every iteration.

    Args:
        sources: Interactions of one or more data sets whose items have numbers of their own.
        length: Items a window reads.
        batch_size: Approximate number of predictions per batch.
        seed: Of cuts and order.
        max_windows: Randomly drawn windows per source and iteration; ``None``: all.

    Raises:
        InputError: If no user has two interactions.
    """

    def __init__(
        self,
        sources: Sequence[Interactions],
        length: int = 50,
        batch_size: int = 2048,
        seed: int = 0,
        max_windows: int | None = None,
    ) -> None:
        self._sources = sources
        self._items = np.concatenate([items for _, items in sources])
        self._length = length
        self._max_windows = max_windows
        self._rng = np.random.default_rng(seed)
        n_predictions = int((self._cut()[1] - 1).sum())
        if not n_predictions:
            raise InputError(
                "no user has two training interactions, so there is no sequence to learn from:"
                " raise min_interactions"
            )
        self._n_batches = max(1, round(n_predictions / batch_size))

    def __len__(self) -> int:
        """Number of batches."""
        return self._n_batches

    def __iter__(self) -> Iterator[Tensor]:
        """Yield item numbers of shape ``(B, L)``, short windows filled with :data:`PAD`."""
        begins, lengths = self._cut()
        # windows of similar length together, in random combinations
        order = np.argsort(lengths * self._rng.uniform(0.9, 1.1, len(lengths)), kind="stable")
        total = np.cumsum(lengths[order] - 1)
        ends = np.searchsorted(total, total[-1] * np.arange(1, len(self)) / len(self))
        batches = np.split(order, ends)
        for k in self._rng.permutation(len(batches)):
            yield self._gather(begins[batches[k]], lengths[batches[k]])

    def _gather(self, begins: NDArray[np.int64], lengths: NDArray[np.int64]) -> Tensor:
        places = np.arange(lengths.max(initial=2))
        inside = places < lengths[:, None]
        rows = np.where(inside, begins[:, None] + places, 0)
        return torch.from_numpy(np.where(inside, self._items[rows], PAD))

    def _cut(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        offset, parts = 0, []
        for users, _ in self._sources:
            begins, lengths = cut_windows(users, self._length, self._rng)
            if self._max_windows is not None and len(begins) > self._max_windows:
                chosen = self._rng.permutation(len(begins))[: self._max_windows]
                begins, lengths = begins[chosen], lengths[chosen]
            parts.append((begins + offset, lengths))
            offset += len(users)
        begins, lengths = (np.concatenate(part) for part in zip(*parts, strict=True))
        return begins, lengths
