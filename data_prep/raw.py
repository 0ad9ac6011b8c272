"""Raw files to three tables: interactions, titles, profiles."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console

from data_prep.download import download_files
from data_prep.files import IDS, RawFile
from data_prep.read import read_table
from data_prep.settings import DataSettings
from data_prep.sources import Counts, Source
from rpp.types import PROFILE, InputError


@dataclass(frozen=True)
class RawData:
    """The three tables of a data set, as found.

    Attributes:
        interactions: ``user_id`` and ``item_id``, whole numbers or categorical, and ``order``;
            rows as in the file.
        titles: ``item_id``, ``title``; titles of one line each, empty ones left out.
        profiles: ``user_id``, ``gender``, ``age``, ``occupation`` in words.
        counts: Size of the raw interactions.
        folder: Where the files are.
        files: The files read.
        without_tag_time: Interactions left out for want of a tag assignment.
    """

    interactions: pl.DataFrame
    titles: pl.DataFrame
    profiles: pl.DataFrame
    counts: Counts
    folder: Path
    files: tuple[Path, ...]
    without_tag_time: int = 0


def read_raw(settings: DataSettings, console: Console) -> RawData:
    """Find the raw files of a data set and read its three tables.

    Args:
        settings: Which set, from where, in which order. ``order: time`` is the time of the
            interaction; ``play_count`` (Lastfm, the authors' way) how often the user played the
            artist, ascending, so that **the target is each user's most played artist** and
            nothing is chronological; ``tag_time`` (Lastfm) the earliest time at which the user
            gave the artist a tag, artists the user never tagged being left out.
        console: Where downloads show their progress.

    Raises:
        InputError: If a folder or file is missing or unreadable, or a checksum is wrong.
    """
    source, order = settings.source, settings.order
    folder = find_folder(settings.name, source, settings.raw_dir, console)
    used: list[Path] = []

    def table(accepted: tuple[RawFile, ...], remedy: str = "") -> pl.DataFrame:
        raw, path = _first_present(accepted, folder, remedy)
        used.append(path)
        return read_table(raw, path)

    interactions = table(source.interactions)
    n_users, n_items = (len(distinct(interactions[key])) for key in IDS)
    counts = Counts(n_users, n_items, len(interactions))
    titles = _clean_titles(
        table(source.titles),
        shorten=source.years and not settings.years,
        fronts=settings.custom is None or settings.custom.articles == "front",
    )
    without_tag_time = 0
    if order == "tag_time":
        remedy = (
            f"; it is part of {source.downloads[0].url}, unpack that archive into the folder"
            " or choose another order"
        )
        interactions = _by_tag_time(interactions, table(source.tags, remedy))
        without_tag_time = counts.interactions - len(interactions)
        if interactions.is_empty():
            raise InputError(f"{used[-1]} has no tag assignment for any interaction of {used[0]}")
    profiles = pl.DataFrame(schema={"user_id": pl.String})
    if source.profiles_required or any(raw.locate(folder) for raw in source.profiles):
        profiles = table(source.profiles)
    return RawData(
        interactions,
        titles,
        _in_words(profiles, source.meanings),
        counts,
        folder,
        tuple(used),
        without_tag_time,
    )


def distinct(ids: pl.Series) -> pl.DataFrame:
    """The ``name``s in a column of users or items, and the ``code`` that stands for each."""
    codes = ids.to_physical().to_numpy()
    somewhere = np.full(int(codes.max()) + 1, -1, dtype=np.int32)  # a row with the code
    somewhere[codes] = np.arange(len(codes), dtype=np.int32)
    used = np.flatnonzero(somewhere >= 0)
    return pl.DataFrame({"code": used, "name": ids.gather(somewhere[used]).cast(pl.String)})


def find_folder(name: str, source: Source, raw_dir: str | None, console: Console) -> Path:
    """Folder with the raw files: ``raw_dir``, ``RPP_MIRROR/name``, or an official download.

    Raises:
        InputError: If the first of these that exists lacks a file, or the download fails.
    """
    mirror = os.environ.get("RPP_MIRROR")
    if raw_dir is not None or not source.downloads:
        folder = Path(raw_dir or ".").expanduser()
        if not folder.is_dir():
            raise InputError(f"the folder for raw files, {folder}, does not exist")
    elif mirror and not Path(mirror).is_dir():
        raise InputError(f"RPP_MIRROR names the folder {mirror}, which does not exist")
    elif mirror and (Path(mirror) / name).is_dir():
        folder = Path(mirror) / name
    else:
        folder = download_files(name, source, console)
    for accepted in (source.interactions, source.titles):
        _first_present(accepted, folder)
    return folder


def _first_present(
    accepted: tuple[RawFile, ...], folder: Path, remedy: str = ""
) -> tuple[RawFile, Path]:
    for raw in accepted:
        if path := raw.locate(folder):
            return raw, path
    if len(accepted) == 1:
        raise InputError(f"{folder / accepted[0].file} does not exist, plain or as .gz{remedy}")
    names = " nor ".join(raw.file for raw in accepted)
    raise InputError(f"{folder} holds neither {names} (plain or .gz){remedy}")


def _clean_titles(titles: pl.DataFrame, *, shorten: bool, fronts: bool) -> pl.DataFrame:
    """One line per title, entities resolved, the year appended where it stands apart.

    With ``fronts`` an article after a comma moves to the front: ``Matrix, The (1999)`` is ``The
    Matrix (1999)``.
    With ``shorten`` the year goes, except where two titles would then be the same.
    """
    title = pl.col("title").str.replace_all(r"\s+", " ").str.strip_chars()
    if "year" in titles.columns:
        year = pl.col("year").str.extract(r"^(\d{4})$")
        title = pl.concat_str(title, pl.format(" ({})", year).fill_null(""))
    article = r"^(.+?), (The|A|An)((?: \([^()]*\))*)$"
    plain = [None if text is None else html.unescape(text) for text in titles["title"]]
    return (
        titles.lazy()
        .with_columns(title=pl.Series(plain, dtype=pl.String))
        .select("item_id", title=title.str.replace(article, "$2 $1$3") if fronts else title)
        .filter(pl.col("title") != "")
        .unique("item_id", keep="first", maintain_order=True)
        .with_columns(short=pl.col("title").str.replace(r" \(\d{4}\)$", ""))
        .with_columns(is_unique=pl.len().over(pl.col("short").str.to_lowercase()) == 1)
        .select(
            "item_id", title=pl.when(pl.col("is_unique") & shorten).then("short").otherwise("title")
        )
        .collect()
    )


def _by_tag_time(interactions: pl.DataFrame, tags: pl.DataFrame) -> pl.DataFrame:
    """Interactions with the earliest tag assignment as order, without those never tagged."""
    names = pl.col(*IDS).cast(pl.String)  # in one of the tables they may be numbers
    earliest = tags.lazy().with_columns(names).group_by(IDS).agg(pl.col("order").min())
    return (
        interactions.lazy()
        .select(names)
        .join(earliest, on=IDS, how="inner", maintain_order="left")
        .with_columns(pl.col(*IDS).cast(pl.Categorical))
        .collect()
    )


def _in_words(
    profiles: pl.DataFrame, meanings: Mapping[str, Mapping[str, str | None]]
) -> pl.DataFrame:
    """Profiles with every column, codes replaced by words, one row per user."""
    columns = {
        key: (
            pl.col(key).replace(dict(meanings.get(key, {})))
            if key in profiles.columns
            else pl.lit(None, pl.String)
        )
        for key in PROFILE
    }
    words = profiles.lazy().select("user_id", **columns)
    return words.unique("user_id", keep="first", maintain_order=True).collect()
