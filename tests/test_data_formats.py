"""Raw files of every format to the same tables; titles, profiles and orders."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from raw_files import (
    N_ITEMS,
    N_USERS,
    QUIET,
    custom,
    games,
    games_sequences,
    lastfm,
    lastfm_atomic,
    ml_1m,
    ml_1m_atomic,
    ml_1m_positions,
    ml_100k,
    ml_100k_atomic,
    rows,
    settings,
    shown,
    tables,
    write,
)

from data_prep.prepare import prepare
from data_prep.tables import load_summary
from rpp.data.episodes import load_episodes
from rpp.data.interactions import load_titles, load_users
from rpp.types import final_scoring

pytestmark = pytest.mark.usefixtures("no_outside")


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
    kept = replace(files, articles="keep")
    prepare(settings("custom", None, custom=kept), tmp_path / "kept", QUIET)
    assert load_titles(tmp_path / "kept")[0] == " ".join(raw.split())


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


def test_games_without_a_title_are_left_out(tmp_path):
    raw = games(tmp_path / "raw")
    meta = gzip.decompress((raw / "meta_Video_Games.json.gz").read_bytes()).decode().splitlines()
    write(raw / "meta_Video_Games.json.gz", meta[1:])
    summary = prepare(settings("games", raw), tmp_path / "out", QUIET)
    lost = sum(item == 1 for _, item, _ in rows())
    assert summary["dropped"]["without_title"] == lost > 0
    assert summary["counts"]["prepared"]["items"] == N_ITEMS - 1


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
