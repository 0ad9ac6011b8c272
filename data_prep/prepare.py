"""Raw files to a Parquet folder and a summary.

Departures from the paper, all reported in ``summary.json``: rare users and items are removed until
none is left; candidates never contain an item of the user's own history, and two candidates never
share a title; their order is drawn for each user; training, validation and test users are disjoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from filelock import FileLock
from numpy.typing import NDArray
from rich.console import Console

from data_prep.candidates import CandidateSampler, read_lists
from data_prep.folder import restore_interrupted, reusable, write_folder
from data_prep.raw import RawData, distinct, read_raw
from data_prep.settings import DataSettings
from data_prep.sources import CustomFiles
from data_prep.splits import Sequences, assign_roles, order_and_filter
from data_prep.summary import Summary, print_summary, summarise
from data_prep.tables import (
    COLUMNS,
    EPISODES_FILE,
    INTERACTIONS_FILE,
    ITEMS_FILE,
    USERS_FILE,
)
from rpp.types import SPLITS, InputError, Split

__all__ = ["CustomFiles", "DataSettings", "prepare"]


def prepare(settings: DataSettings, out_dir: Path, console: Console | None = None) -> Summary:
    """Prepare a data set if the folder does not have it already.

    The folder is replaced atomically: an interrupted run leaves the old one unchanged. Other files
    in it are kept.

    Args:
        settings: What to prepare.
        out_dir: The folder to write.
        console: Output for progress and the table of counts.

    Returns:
        The content of ``summary.json``.

    Raises:
        InputError: If a raw file or a setting cannot be used.
        OSError: If the folder cannot be written.
    """
    console = console or Console()
    out_dir = Path(out_dir).absolute()
    if (summary := reusable(settings, out_dir, console)) is not None:
        return summary
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out_dir.with_name(f".{out_dir.name}.lock")):
        restore_interrupted(out_dir)
        # Another process may have prepared the folder while this one waited.
        return reusable(settings, out_dir, console) or _prepare(settings, out_dir, console)


def _prepare(settings: DataSettings, out_dir: Path, console: Console) -> Summary:
    console.print(f"Preparing {settings.name} in {out_dir}", highlight=False, soft_wrap=True)
    raw = read_raw(settings, console)
    interactions, untitled = _with_titles(raw, settings.source.untitled)
    sequences = order_and_filter(interactions, settings.min_interactions)
    roles, listed = _roles(settings, raw, sequences)
    tables = _tables(settings, raw, sequences, roles, listed)
    dropped = {
        "without_title": untitled,
        "without_tag_time": raw.without_tag_time,
        "repeated": sequences.n_repeated,
    }
    summary = summarise(settings, raw, tables, dropped)
    write_folder(out_dir, tables, summary)
    print_summary(summary, console)
    return summary


def _with_titles(raw: RawData, untitled: Literal["refuse", "drop"]) -> tuple[pl.DataFrame, int]:
    """Interactions with items that have a title, and the number of the others."""
    ids = distinct(raw.interactions["item_id"])
    lacking = ids.join(raw.titles, left_on="name", right_on="item_id", how="anti")["code"]
    if lacking.is_empty():
        return raw.interactions, 0
    without = raw.interactions["item_id"].to_physical().is_in(lacking.implode())
    if untitled == "refuse":
        first = raw.interactions["item_id"].filter(without).cast(pl.String).first()
        raise InputError(f"item {first!r} of {raw.files[0]} has no title in {raw.files[1]}")
    return raw.interactions.filter(~without), int(without.sum())


def _tables(
    settings: DataSettings,
    raw: RawData,
    sequences: Sequences,
    roles: Mapping[Split, list[int]],
    listed: Mapping[int, list[int]],
) -> dict[str, pl.DataFrame]:
    """The four prepared tables."""
    title_of = dict(raw.titles.iter_rows())
    titles = [title_of[item] for item in sequences.item_ids]
    splits = sequences.splits(roles["train"], settings.n_targets)
    n_train = np.bincount(sequences.items[splits == 0], minlength=len(titles))
    role_of = {user: split for split, users in roles.items() for user in users}
    users = pl.DataFrame(
        {
            "user_id": sequences.user_ids,
            "role": [role_of.get(user, "rest") for user in range(len(sequences.user_ids))],
        }
    )
    sampler = CandidateSampler(sequences, titles, settings.n_candidates, settings.seed)
    numbers = pl.List(pl.UInt32)
    return {
        INTERACTIONS_FILE: pl.DataFrame(
            {
                "user": _u32(sequences.users),
                "item": _u32(sequences.items),
                "position": _u32(sequences.positions),
                "split": pl.Series(SPLITS).gather(splits),
            }
        ),
        ITEMS_FILE: pl.DataFrame(
            {
                "item": _u32(np.arange(len(titles))),
                "item_id": sequences.item_ids,
                "title": titles,
                "n_train": _u32(n_train),
            }
        ),
        USERS_FILE: users.join(
            raw.profiles, on="user_id", how="left", maintain_order="left"
        ).select(pl.int_range(pl.len(), dtype=pl.UInt32).alias("user"), pl.all()),
        EPISODES_FILE: pl.DataFrame(
            [
                row
                for split, users_of_role in roles.items()
                for user in users_of_role
                for row in _episodes(
                    sequences, sampler, user, split, settings.n_targets_of(split), listed.get(user)
                )
            ],
            schema=dict(
                zip(
                    COLUMNS[EPISODES_FILE],
                    (pl.UInt32, pl.String, numbers, numbers, pl.UInt32),
                    strict=True,
                )
            ),
            orient="row",
        ),
    }


def _roles(
    settings: DataSettings, raw: RawData, sequences: Sequences
) -> tuple[dict[Split, list[int]], Mapping[int, list[int]]]:
    """Users of each role, and the authors' lists if they are to be used."""
    if settings.candidates == "uniform":
        return assign_roles(sequences, settings.n_users, settings.seed), {}
    stem = settings.source.lists
    return read_lists(raw.folder, stem, sequences, settings.n_users, settings.seed)


def _episodes(
    sequences: Sequences,
    sampler: CandidateSampler,
    user: int,
    split: Split,
    n_targets: int,
    listed: list[int] | None,
) -> Iterator[tuple[int, Split, list[int], list[int], int]]:
    """The rows of one user's episodes, the one with the latest target first."""
    items = sequences.of(user).tolist()
    for number, place in enumerate(sequences.targets(user, split, n_targets)):
        candidates, target = sampler.draw(user, items[place], listed, number)
        yield user, split, items[:place], candidates, target


def _u32(numbers: NDArray[np.integer[Any]]) -> pl.Series:
    return pl.Series(numbers, dtype=pl.UInt32)
