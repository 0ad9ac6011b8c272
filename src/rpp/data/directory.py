"""The directory of a data set: its items and users by the names the raw data give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from data_prep.tables import ITEM, ITEM_ID, ITEMS_FILE, TITLE, USER, USER_ID, USERS_FILE, scan_table
from rpp.types import UNKNOWN, InputError, Item, normalise

Named = str | int | Mapping[str, str | int]
"""An item as a caller names it: its id, its title, or both as ``{"id": ..., "title": ...}``."""


@dataclass(frozen=True)
class Directory:
    """Ids and titles in the order of their rows.

    Attributes:
        item_ids: Names of the items in the raw data.
        titles: Their titles, as prompts show them.
        user_ids: Names of the users.
    """

    item_ids: Sequence[str]
    titles: Sequence[str]
    user_ids: Sequence[str]

    @cached_property
    def item_rows(self) -> dict[str, int]:
        """Row of every item id."""
        return {name: row for row, name in enumerate(self.item_ids)}

    @cached_property
    def user_rows(self) -> dict[str, int]:
        """Row of every user id."""
        return {name: row for row, name in enumerate(self.user_ids)}

    @cached_property
    def title_rows(self) -> dict[str, int]:
        """Row of every title, in the form of :func:`rpp.types.normalise`; the first of several."""
        rows: dict[str, int] = {}
        for row, title in enumerate(self.titles):
            rows.setdefault(normalise(title), row)
        return rows

    def user(self, name: str | int | None) -> int:
        """Row of a user, or :data:`rpp.types.UNKNOWN`."""
        return UNKNOWN if name is None else self.user_rows.get(str(name), UNKNOWN)

    def find(self, named: Named) -> tuple[Item, str | None]:
        """The item a caller names, and its id.

        A known id decides, then a known title. Any other item has its title alone.

        Raises:
            InputError: If an unknown item has no title.
        """
        name: str | int | None
        title: str | int | None
        if isinstance(named, Mapping):
            name, title = named.get("id"), named.get("title")
            own_id = None if name is None else str(name)
        else:
            name, title, own_id = named, named, None
        row = self.item_rows.get(str(name)) if name is not None else None
        if row is not None:
            return self._item(row)
        if not isinstance(title, str) or not title.strip():
            raise InputError(f"the item {name!r} is not in the catalogue: give its title as well")
        row = self.title_rows.get(normalise(title))
        item, known_id = (
            (Item(UNKNOWN, " ".join(title.split())), None) if row is None else self._item(row)
        )
        return item, own_id or known_id

    def _item(self, row: int) -> tuple[Item, str]:
        return Item(row, self.titles[row]), self.item_ids[row]


def load_directory(folder: Path) -> Directory:
    """The directory of a prepared folder."""
    items = scan_table(folder, ITEMS_FILE).sort(ITEM).select(pl.col(ITEM_ID).cast(pl.String), TITLE)
    users = scan_table(folder, USERS_FILE).sort(USER).select(pl.col(USER_ID).cast(pl.String))
    table = items.collect()
    return Directory(
        table[ITEM_ID].to_list(), table[TITLE].to_list(), users.collect()[USER_ID].to_list()
    )
