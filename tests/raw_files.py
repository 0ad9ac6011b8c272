"""Raw files of a small data set in every accepted form, and what the tests ask of them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
from rich.console import Console

from data_prep.prepare import CustomFiles, DataSettings
from data_prep.tables import COLUMNS
from rpp.data.interactions import load_users

N_USERS, N_ITEMS = 24, 40


QUIET = Console(quiet=True)


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


SPLIT_NAMES = ("train", "validation", "test")


def spoil(path: Path, number: int, line: str, encoding: str = "utf-8") -> None:
    """Replace one line, counted from 1."""
    lines = path.read_bytes().split(b"\n")
    lines[number - 1] = line.encode(encoding)
    path.write_bytes(b"\n".join(lines))


def by_name(out: Path) -> dict[str, tuple[str, list[str], int]]:
    """Split, candidates by name and target's place, by name of the user."""
    items = pl.read_parquet(out / "items.parquet")["item_id"].to_list()
    users = load_users(out)["user_id"].to_list()
    return {
        users[row["user"]]: (row["split"], [items[i] for i in row["candidates"]], row["target"])
        for row in pl.read_parquet(out / "episodes.parquet").iter_rows(named=True)
    }
