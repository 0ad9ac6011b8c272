"""Order in time, repeated interactions, filtering and splits."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from raw_files import (
    N_ITEMS,
    N_USERS,
    QUIET,
    ml_1m,
    rows,
    settings,
    tables,
)

from data_prep.prepare import prepare
from data_prep.splits import order_and_filter
from rpp.data.interactions import load_training_pairs, load_users
from rpp.types import InputError

pytestmark = pytest.mark.usefixtures("no_outside")


def test_splits_by_hand(tmp_path):
    """The last interaction is test, the one before validation, the rest training."""
    prepare(settings("ml-1m", ml_1m(tmp_path / "raw")), tmp_path / "out", QUIET)
    table = pl.read_parquet(tmp_path / "out/interactions.parquet")
    own = sorted((t, place, i) for place, (u, i, t) in enumerate(rows()) if u == 5)
    expected = [item - 1 for _, _, item in own]
    mine = table.filter(user=4).sort("position")
    assert mine["item"].to_list() == expected
    assert mine["position"].to_list() == list(range(6))
    assert mine["split"].to_list() == ["train"] * 4 + ["validation", "test"]
    users, items = load_training_pairs(tmp_path / "out")
    assert items[users == 4].tolist() == expected[:4]
    counts = pl.read_parquet(tmp_path / "out/items.parquet").sort("item")["n_train"]
    assert counts.to_list() == np.bincount(items, minlength=N_ITEMS).tolist()
    assert counts.sum() == len(rows()) - 2 * N_USERS


def test_equal_times_keep_the_order_of_the_file():
    """An unstable sort changed the last item of 1,547 users of ML-1M."""
    n_items = 500
    interactions = pl.DataFrame(
        {
            "user_id": ["u"] * n_items,
            "item_id": [str(item) for item in range(n_items)],
            "order": [float(item % 2) for item in range(n_items)],
        }
    )
    sequences = order_and_filter(interactions, 0)
    expected = [*range(0, n_items, 2), *range(1, n_items, 2)]
    assert sequences.of(0).tolist() == expected


@pytest.mark.parametrize("times", [[3, 1, 2, 1], [0.3, 0.1, 0.2, 0.1], [3e300, -1, 2, -1]], ids=str)
def test_times_of_any_kind_are_sorted(times):
    interactions = pl.DataFrame(
        {"user_id": ["u"] * 4, "item_id": list("abcd"), "order": times},
        schema_overrides={"order": pl.Float64},
    )
    sequences = order_and_filter(interactions, 0)
    assert [sequences.item_ids[item] for item in sequences.of(0)] == ["b", "d", "c", "a"]


def test_repeated_interactions_count_once_at_their_first_time():
    interactions = pl.DataFrame(
        {
            "user_id": ["u"] * 5,
            "item_id": ["a", "b", "a", "c", "a"],
            "order": [5.0, 2.0, 1.0, 3.0, 9.0],
        }
    )
    sequences = order_and_filter(interactions, 0)
    assert [sequences.item_ids[item] for item in sequences.of(0)] == ["a", "b", "c"]
    assert sequences.n_repeated == 2


def test_repeated_interactions_of_many_users():
    rng = np.random.default_rng(0)
    log = [(f"u{rng.integers(9)}", f"i{rng.integers(6)}", float(k)) for k in range(200)]
    schema = ["user_id", "item_id", "order"]
    sequences = order_and_filter(pl.DataFrame(log, schema=schema, orient="row"), 0)
    for user, name in enumerate(sequences.user_ids):
        expected = list(dict.fromkeys(item for who, item, _ in log if who == name))
        assert [sequences.item_ids[item] for item in sequences.of(user)] == expected


def test_filter_is_repeated_until_stable():
    """Removing item z leaves user 3 with one interaction, without whom item c is rare too."""
    pairs = [
        (1, "a"),
        (1, "b"),
        (2, "a"),
        (2, "b"),
        (3, "c"),
        (3, "z"),
        (4, "c"),
        (4, "a"),
        (4, "b"),
    ]
    interactions = pl.DataFrame(
        [(str(user), item, 0.0) for user, item in pairs],
        schema=["user_id", "item_id", "order"],
        orient="row",
    )
    sequences = order_and_filter(interactions, 2)
    assert sequences.user_ids == ["1", "2", "4"]
    assert sequences.item_ids == ["a", "b"]
    with pytest.raises(InputError, match="min_interactions=9"):
        order_and_filter(interactions, 9)


def test_users_too_short_for_three_splits_have_no_episode(tmp_path):
    table = [row for row in rows() if row[0] != 7] + [(7, 1, 1), (7, 2, 2)]
    changed = settings("ml-1m", ml_1m(tmp_path / "raw", table), n_train_users=12)
    prepare(changed, tmp_path / "out", QUIET)
    interactions = pl.read_parquet(tmp_path / "out/interactions.parquet")
    assert interactions.filter(user=6)["split"].to_list() == ["train", "train"]
    assert load_users(tmp_path / "out")["role"][6] == "rest"


def test_rows_in_another_order_give_the_same_folder(tmp_path):
    """With distinct times the order of the file means nothing, users' numbers included."""
    table = [(user, item, place) for place, (user, item, _) in enumerate(rows())]
    prepare(settings("ml-1m", ml_1m(tmp_path / "a", table)), tmp_path / "out_a", QUIET)
    prepare(settings("ml-1m", ml_1m(tmp_path / "b", table[::-1])), tmp_path / "out_b", QUIET)
    assert tables(tmp_path / "out_a") == tables(tmp_path / "out_b")
