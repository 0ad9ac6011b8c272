"""Episodes: users of each role, candidates, the place of the target, the authors' lists."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from raw_files import (
    N_ITEMS,
    QUIET,
    SPLIT_NAMES,
    by_name,
    custom,
    lastfm,
    ml_1m,
    rows,
    settings,
    write,
)

from data_prep.prepare import prepare
from rpp.data.datamodule import shuffle_candidates
from rpp.data.episodes import load_episodes
from rpp.data.interactions import load_titles, load_training_pairs, load_users
from rpp.types import InputError, TargetAccessError, final_scoring, normalise

pytestmark = pytest.mark.usefixtures("no_outside")


def test_episodes(tmp_path):
    """Disjoint users; the right target; no candidate ever touched; one title each."""
    out = tmp_path / "out"
    prepare(settings("ml-1m", ml_1m(tmp_path / "raw")), out, QUIET)
    interactions = pl.read_parquet(out / "interactions.parquet").sort("user", "position")
    seen: list[int] = []
    for split, number, place in (("train", 8, -2), ("validation", 5, -2), ("test", 6, -1)):
        episodes = load_episodes(out, split)
        assert len(episodes) == number
        for episode in episodes:
            seen.append(episode.user)
            own = interactions.filter(user=episode.user)["item"].to_list()
            with final_scoring():
                target = episode.candidates[episode.target].index
            assert target == own[place]
            assert [item.index for item in episode.history] == own[:place]
            shown_items = [item.index for item in episode.candidates]
            assert len(shown_items) == 5
            assert set(shown_items) & set(own) == {target}
            assert len({normalise(item.title) for item in episode.candidates}) == 5
            assert episode.candidates[0].title == load_titles(out)[shown_items[0]]
        assert load_users(out).filter(role=split)["user"].to_list() == sorted(seen[-number:])
    assert len(set(seen)) == 19
    with pytest.raises(TargetAccessError):
        _ = load_episodes(out, "test")[0].target
    profile = load_episodes(out, "train")[0].profile
    assert profile["gender"] in ("female", "male")
    assert all(profile.values())


def test_earlier_targets_of_training_users(tmp_path):
    """Each is an episode with candidates of its own, as far as a history is left before it."""
    table = [*rows(), *((25, item, item) for item in (3, 9, 4, 8))]
    raw = ml_1m(tmp_path / "raw", table)
    wanted = {"n_train_users": 12, "n_targets": 3}
    prepare(settings("ml-1m", raw, n_train_users=12), tmp_path / "one", QUIET)
    summary = prepare(settings("ml-1m", raw, **wanted), tmp_path / "three", QUIET)
    found = pl.read_parquet(tmp_path / "three/interactions.parquet").sort("user", "position")
    episodes = load_episodes(tmp_path / "three", "train")
    users = [episode.user for episode in load_episodes(tmp_path / "one", "train")]
    assert summary["n_episodes"] == {"train": len(episodes), "validation": 5, "test": 6}
    assert list(dict.fromkeys(episode.user for episode in episodes)) == users
    for user in users:
        own = found.filter(user=user)["item"].to_list()
        mine = [episode for episode in episodes if episode.user == user]
        places = [len(own) - 2 - number for number in range(min(3, len(own) - 2))]
        assert [episode.number for episode in mine] == [*range(len(places))]
        for episode, place in zip(mine, places, strict=True):
            assert episode.candidates[episode.target].index == own[place]
            assert [item.index for item in episode.history] == own[:place]
            shown_items = {item.index for item in episode.candidates}
            assert shown_items & set(own) == {own[place]}
        assert len({frozenset(item.index for item in e.candidates) for e in mine}) == len(mine)
        kept = found.filter(user=user)["split"].to_list()
        assert kept == ["train"] * places[-1] + ["validation"] * len(places) + ["test"]
    assert [e for e in episodes if e.number == 0] == load_episodes(tmp_path / "one", "train")
    for split in ("validation", "test"):
        assert load_episodes(tmp_path / "three", split) == load_episodes(tmp_path / "one", split)
    counts = pl.read_parquet(tmp_path / "three/items.parquet")["n_train"]
    assert counts.sum() == len(table) - 2 * 25 - (len(episodes) - len(users))


def test_a_single_target_leaves_no_trace(tmp_path):
    """The setting is younger than prepared folders, which stay as they are."""
    raw = ml_1m(tmp_path / "raw")
    one = prepare(settings("ml-1m", raw), tmp_path / "out", QUIET)
    written = (tmp_path / "out/episodes.parquet").stat().st_mtime_ns
    assert "n_targets" not in one["settings"]
    assert prepare(settings("ml-1m", raw, n_targets=1), tmp_path / "out", QUIET) == one
    assert (tmp_path / "out/episodes.parquet").stat().st_mtime_ns == written
    two = prepare(settings("ml-1m", raw, n_targets=2), tmp_path / "out", QUIET)
    assert two["settings"]["n_targets"] == 2
    assert two["train_fingerprint"] != one["train_fingerprint"]
    assert any("up to 2 targets" in sentence for sentence in two["explanations"])


@pytest.mark.parametrize("split", SPLIT_NAMES)
def test_a_target_among_the_training_interactions_is_refused(tmp_path, split):
    """A planted leak: the interaction an episode withholds is handed to what is fitted."""
    out = tmp_path / "out"
    prepare(settings("ml-1m", ml_1m(tmp_path / "raw"), n_targets=3), out, QUIET)
    load_training_pairs(out)
    with final_scoring():
        episode = load_episodes(out, split)[-1]
        target = episode.candidates[episode.target].index
    table = pl.read_parquet(out / "interactions.parquet")
    planted = (pl.col("user") == episode.user) & (pl.col("item") == target)
    leaky = table.with_columns(
        pl.when(planted).then(pl.lit("train")).otherwise("split").alias("split")
    )
    leaky.write_parquet(out / "interactions.parquet")
    with pytest.raises(InputError, match=f"item {target} of user {episode.user} is the target"):
        load_training_pairs(out)


def test_training_orders_are_drawn_for_each_episode(tmp_path):
    out = tmp_path / "out"
    prepare(settings("ml-1m", ml_1m(tmp_path / "raw"), n_targets=3), out, QUIET)
    episodes = load_episodes(out, "train")
    shuffled = shuffle_candidates(episodes, 5, 2)
    places: dict[int, set[tuple[int, ...]]] = {}
    for before, after in zip(episodes, shuffled, strict=True):
        order = tuple(before.candidates.index(item) for item in after.candidates)
        assert order[after.target] == before.target
        places.setdefault(before.user, set()).add(order)
        if before.number == 0:  # as when users had one target
            expected = np.random.default_rng([5, 2, before.user]).permutation(5)
            assert order == tuple(expected.tolist())
    assert sum(len(orders) for orders in places.values()) > 2 * len(places)
    assert shuffle_candidates(episodes[::-1], 5, 2)[::-1] == shuffled


def test_a_title_is_never_shown_twice(tmp_path):
    """Half of the catalogue is called the same; only one of them may be a candidate."""
    files = custom(tmp_path)
    titles = [f"{'Same!' if i % 2 else f'Other {i}'},{i}" for i in range(1, 41)]
    write(Path(files.titles), ["name,what", *titles])
    prepare(settings("custom", None, custom=files, n_candidates=10), tmp_path / "out", QUIET)
    for split in ("train", "validation", "test"):
        for episode in load_episodes(tmp_path / "out", split):
            assert sum(item.title == "Same!" for item in episode.candidates) <= 1


def test_target_position_is_uniform_and_reported(tmp_path):
    """The released code put every user's target into the same place."""
    counts: Counter[int] = Counter()
    raw = ml_1m(tmp_path / "raw")
    for seed in range(20):
        out = tmp_path / f"out{seed}"
        summary = prepare(settings("ml-1m", raw, seed=seed), out, QUIET)
        found = Counter(pl.read_parquet(out / "episodes.parquet").filter(split="train")["target"])
        assert summary["target_positions"]["train"] == [found[place] for place in range(5)]
        assert len(found) > 1  # by chance all alike once in 78,125 seeds
        counts += found
    assert counts.total() == 160
    # Binomial(160, 1/5): mean 32, standard deviation 5.06; four of these to each side.
    assert all(12 <= counts[place] <= 52 for place in range(5))


def test_negatives_are_uniform(tmp_path):
    """Every item is drawn about equally often over seeds, for one user."""
    counts: Counter[int] = Counter()
    raw = ml_1m(tmp_path / "raw")
    changes = {"n_train_users": 13, "n_candidates": 10}
    for seed in range(30):
        prepare(settings("ml-1m", raw, seed=seed, **changes), tmp_path / f"{seed}", QUIET)
        episodes = pl.read_parquet(tmp_path / f"{seed}/episodes.parquet").filter(user=4)
        for row in episodes.iter_rows(named=True):
            drawn = set(row["candidates"]) - {row["candidates"][row["target"]]}
            counts.update(drawn)
    draws = counts.total() / 9
    assert draws > 20
    # 34 items are eligible (user 5 has 6), each with chance 9/34 a draw; 5 deviations.
    deviation = (draws * 9 / 34 * 25 / 34) ** 0.5
    assert len(counts) == 34
    assert all(abs(number - draws * 9 / 34) < 5 * deviation for number in counts.values())


def test_users_draw_different_negatives(tmp_path):
    """A generator shared by all users would deal nearly the same items to everybody."""
    raw, out = ml_1m(tmp_path / "raw"), tmp_path / "out"
    prepare(settings("ml-1m", raw, n_train_users=13, n_candidates=10), out, QUIET)
    negatives = [
        {item.index for place, item in enumerate(episode.candidates) if place != episode.withheld}
        for episode in load_episodes(out, "train")
    ]
    shared = [len(a & b) for a, b in combinations(negatives, 2)]
    # 9 of about 32 items each: 9 * 9 / 32 = 2.5 in common; up to 9 with one generator.
    assert 1.5 < np.mean(shared) < 3.5


def test_users_do_not_depend_on_one_another(tmp_path):
    """Other users leave and the rows change places; the catalogue stays."""
    before = settings("ml-1m", ml_1m(tmp_path / "a"))
    prepare(before, tmp_path / "out_a", QUIET)
    table = [row for row in reversed(rows()) if row[0] > 4]
    ties_kept = sorted(table, key=lambda row: (-row[0], rows().index(row)))
    assert {item for _, item, _ in ties_kept} == {item for _, item, _ in rows()}
    prepare(settings("ml-1m", ml_1m(tmp_path / "b", ties_kept)), tmp_path / "out_b", QUIET)
    first, second = by_name(tmp_path / "out_a"), by_name(tmp_path / "out_b")
    same = [name for name in first if name in second and first[name][0] == second[name][0]]
    assert len(same) > 8
    assert all(first[name] == second[name] for name in same)


def test_more_test_users_change_nothing_else(tmp_path):
    raw = ml_1m(tmp_path / "raw")
    few = prepare(settings("ml-1m", raw, n_test_users=3), tmp_path / "few", QUIET)
    many = prepare(settings("ml-1m", raw, n_test_users=11), tmp_path / "many", QUIET)
    assert few["fingerprint"] == many["fingerprint"]
    for split, number in (("train", 8), ("validation", 5), ("test", 3)):
        smaller = load_episodes(tmp_path / "few", split)
        assert smaller == load_episodes(tmp_path / "many", split, limit=number)
    other = prepare(settings("ml-1m", raw, n_train_users=7), tmp_path / "other", QUIET)
    assert other["fingerprint"] != few["fingerprint"]
    assert other["train_fingerprint"] == few["train_fingerprint"]
    assert load_episodes(tmp_path / "other", "test") == load_episodes(tmp_path / "many", "test", 6)
    assert load_episodes(tmp_path / "other", "train") == load_episodes(tmp_path / "few", "train", 7)


def test_seed_changes_users_and_candidates(tmp_path):
    raw = ml_1m(tmp_path / "raw")
    prepare(settings("ml-1m", raw), tmp_path / "a", QUIET)
    prepare(settings("ml-1m", raw, seed=1), tmp_path / "b", QUIET)
    assert by_name(tmp_path / "a") != by_name(tmp_path / "b")


def test_limit_of_episodes(tmp_path):
    out = tmp_path / "out"
    prepare(settings("ml-1m", ml_1m(tmp_path / "raw")), out, QUIET)
    assert load_episodes(out, "train", limit=3) == load_episodes(out, "train")[:3]
    for limit in (0, 9):
        with pytest.raises(InputError, match=f"{limit} train episodes were asked for"):
            load_episodes(out, "train", limit=limit)
    with pytest.raises(InputError, match="'valid'"):
        load_episodes(out, "valid")
    with pytest.raises(InputError, match="does not exist: prepare the data first"):
        load_episodes(tmp_path, "train")


def authors(raw: Path, train: list[int], test: list[int]) -> Path:
    """Lists in the authors' form: every second item from the user's number on."""
    for part, users in (("train", train), ("test", test)):
        lines = [
            f"{u}\t{' '.join(str((u + 3 * k) % N_ITEMS + 1) for k in range(30))} " for u in users
        ]
        write(raw / f"lastfm.{part}", lines)
    return raw


def test_authors_lists(tmp_path):
    raw = authors(lastfm(tmp_path / "raw"), [3, 1, 9, 12, 20, 7], [12, 5, 7])
    changes = {"candidates": "authors", "n_validation_users": 2}
    summary = prepare(settings("lastfm", raw, **changes), tmp_path / "out", QUIET)
    found = by_name(tmp_path / "out")
    of_role = {split: {n for n, row in found.items() if row[0] == split} for split in SPLIT_NAMES}
    assert of_role["test"] == {"12", "5", "7"}  # the overlap stays with the test users
    assert of_role["train"] | of_role["validation"] == {"3", "1", "9", "20"}
    assert len(of_role["validation"]) == 2
    for name, (_, candidates, target) in found.items():
        user = int(name)
        own = {i for u, i, _ in rows() if u == user}
        listed = [(user + 3 * k) % N_ITEMS + 1 for k in range(30)]
        expected = [str(i) for i in listed if i not in own][:4]
        assert sorted(candidates[:target] + candidates[target + 1 :]) == sorted(expected)
        assert int(candidates[target]) in own
    assert {Path(file["path"]).name for file in summary["sources"]} >= {
        "lastfm.train",
        "lastfm.test",
    }


def test_earlier_targets_draw_from_the_authors_lists(tmp_path):
    raw = authors(lastfm(tmp_path / "raw"), [3, 1, 9, 20], [12])
    changes = {"candidates": "authors", "n_validation_users": 1, "n_targets": 2}
    prepare(settings("lastfm", raw, **changes), tmp_path / "out", QUIET)
    episodes = load_episodes(tmp_path / "out", "train")
    assert len(episodes) == 6
    for first, second in zip(episodes[::2], episodes[1::2], strict=True):
        listed = {str((int(first.user_id) + 3 * k) % N_ITEMS + 1) for k in range(30)}
        negatives = [
            {item.title for item in each.candidates} - {each.candidates[each.target].title}
            for each in (first, second)
        ]
        assert negatives[0] != negatives[1]
        assert {title.split('"')[1] for title in negatives[1]} <= listed


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("5\t1 2 77", r"lastfm\.test, line 2: item 77 is not in the prepared data"),
        ("99\t1 2 3", r"lastfm\.test, line 2: user 99 "),
        ("5 1 2 3", r"lastfm\.test, line 2: no tab"),
        ("5\t1 2 3", r"n_candidates=5 is too many"),
    ],
)
def test_bad_lists(tmp_path, line, message):
    raw = authors(lastfm(tmp_path / "raw"), [3, 1, 9, 12, 20, 7], [12])
    with (raw / "lastfm.test").open("a") as file:
        file.write(line + "\n")
    changes = {"candidates": "authors", "n_validation_users": 2}
    with pytest.raises(InputError, match=message):
        prepare(settings("lastfm", raw, **changes), tmp_path / "out", QUIET)


def test_lists_that_are_missing_or_too_short(tmp_path):
    raw = lastfm(tmp_path / "raw")
    with pytest.raises(InputError, match=r"lastfm\.train does not exist: candidates=authors"):
        prepare(settings("lastfm", raw, candidates="authors"), tmp_path / "out", QUIET)
    authors(raw, [3, 1, 9], [12])
    with pytest.raises(InputError, match=r"holds 3 users .* too few for 5 validation users"):
        prepare(settings("lastfm", raw, candidates="authors"), tmp_path / "out", QUIET)
