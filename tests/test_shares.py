"""Groups of users in a report; shares by hand are in ``test_report.py``."""

from __future__ import annotations

from rpp.results.shares import user_groups
from rpp.types import Episode, Item


def test_thirds_part_the_users():
    """A value on the edge of two thirds belongs to one of them."""
    items = [Item(k, str(k)) for k in range(4)]
    users = [Episode(n, tuple(items[:n]), (items[0],), 0, "test") for n in (1, 2, 3, 4)]
    everyone, *thirds = user_groups(users)
    assert everyone.n_users == 4
    assert [group.members.tolist() for group in thirds] == [
        [True, True, False, False], [False, False, True, False], [False, False, False, True],
    ]  # fmt: skip
