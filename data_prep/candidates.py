"""Candidate lists: drawn uniformly, or the lists of the paper's authors."""

from __future__ import annotations

from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from data_prep.splits import MIN_LENGTH, Sequences, permutation
from rpp.types import InputError, Split, normalise

_DRAW, _SHUFFLE = 1, 2  # separate random streams of one user


class CandidateSampler:
    """Draws every user's candidates, independently of all other users.

    Every draw has its own generator, seeded by seed, user name, purpose and the episode's number.
    """

    def __init__(
        self, sequences: Sequences, titles: list[str], n_candidates: int, seed: int
    ) -> None:
        """Remember the catalogue.

        Args:
            sequences: All interactions: items of a user in any split are never negatives.
            titles: Title of each item of the catalogue.
            n_candidates: :math:`M`, the target included.
            seed: Of the draws.
        """
        self._sequences = sequences
        self._names = [normalise(title) for title in titles]
        self._n_candidates = n_candidates
        self._seed = seed

    def draw(
        self, user: int, target: int, listed: list[int] | None = None, number: int = 0
    ) -> tuple[list[int], int]:
        """Candidates of one episode in the order shown, and the position of the target.

        Args:
            user: Number of the user.
            target: The withheld item.
            listed: Take the negatives from the beginning of this list; ``None``: draw them
                uniformly from the catalogue.
            number: Which of the user's episodes; those after the first shuffle the list.

        Returns:
            The target and ``n_candidates - 1`` items without an interaction of the user, with
            different titles, shuffled; and the position of the target, from 0.

        Raises:
            InputError: If there are not enough such items.
        """
        pool = self._pool(user, listed, number)
        touched = set(self._sequences.of(user).tolist())
        names = {self._names[target]}
        chosen = [target]
        for item in map(int, pool):
            if len(chosen) == self._n_candidates:
                break
            if item not in touched and self._names[item] not in names:
                names.add(self._names[item])
                chosen.append(item)
        if len(chosen) < self._n_candidates:
            raise InputError(
                f"n_candidates={self._n_candidates} is too many: for user"
                f" {self._sequences.user_ids[user]} only {len(chosen)} items with different titles"
                " can be shown, the target and items the user never touched"
            )
        shown = self._generator(user, _SHUFFLE, number).permutation(chosen).tolist()
        return shown, shown.index(target)

    def _pool(
        self, user: int, listed: list[int] | None, number: int
    ) -> NDArray[np.int64] | list[int]:
        """Items in the order in which they become negatives."""
        if listed is not None and number == 0:
            return listed
        items = len(self._names) if listed is None else listed
        return self._generator(user, _DRAW, number).permutation(items)

    def _generator(self, user: int, purpose: int, number: int) -> np.random.Generator:
        name = self._sequences.user_ids[user]
        later = [number] if number else []
        return np.random.default_rng([self._seed, crc32(name.encode()), purpose, *later])


def read_lists(
    folder: Path, stem: str, sequences: Sequences, n_users: dict[Split, int], seed: int
) -> tuple[dict[Split, list[int]], dict[int, list[int]]]:
    """The authors' users and candidates: files ``STEM.train`` and ``STEM.test``.

    A line holds a user, a tab, and 100 items. Users in both files are test users only. The
    validation users are split off the training users. ``n_users["train"]`` and
    ``n_users["test"]`` are upper bounds here; the files hold 200 users each.

    Returns:
        Users of each role, and the listed items of each of these users.

    Raises:
        InputError: If a file is missing, a line has another form, or a user or an item is not in
            the prepared data; or if no training user is left.
    """
    train, test = (_read_list(path, sequences) for path in list_files(folder, stem))
    order = permutation([user for user in train if user not in test], sequences.user_ids, seed)
    n_validation = n_users["validation"]
    if len(order) <= n_validation:
        raise InputError(
            f"{list_files(folder, stem)[0]} holds {len(order)} users that are no test users: too"
            f" few for {n_validation} validation users and at least one training user"
        )
    users: dict[Split, list[int]] = {
        "train": order[n_validation:][: n_users["train"]],
        "validation": order[:n_validation],
        "test": list(test)[: n_users["test"]],
    }
    return users, train | test


def list_files(folder: Path, stem: str) -> tuple[Path, Path]:
    """The authors' lists of training and of test users."""
    return folder / f"{stem}.train", folder / f"{stem}.test"


def _read_list(path: Path, sequences: Sequences) -> dict[int, list[int]]:
    """Listed items by user, both as numbers."""
    if not path.is_file():
        raise InputError(
            f"{path} does not exist: candidates=authors needs the authors' lists (folder of the"
            " data set in github.com/maowenyu-11/RPP) next to the raw files"
        )
    users = {name: user for user, name in enumerate(sequences.user_ids)}
    items = {name: item for item, name in enumerate(sequences.item_ids)}
    lengths = sequences.lengths
    lists: dict[int, list[int]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        name, tab, listed = line.partition("\t")
        if not tab:
            raise InputError(f"{path}, line {number}: no tab between the user and the items")
        if name not in users or lengths[users[name]] < MIN_LENGTH:
            raise InputError(
                f"{path}, line {number}: user {name} does not have {MIN_LENGTH} interactions in"
                " the prepared data; the lists were drawn with min_interactions=0"
            )
        unknown = next((item for item in listed.split() if item not in items), None)
        if unknown is not None:
            raise InputError(
                f"{path}, line {number}: item {unknown} is not in the prepared data; the lists"
                " were drawn with min_interactions=0"
            )
        lists[users[name]] = [items[item] for item in listed.split()]
    return lists
