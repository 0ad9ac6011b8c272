"""Content of ``summary.json``: settings, counts with the paper's, checksums, fingerprints."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from data_prep.candidates import list_files
from data_prep.files import file_record
from data_prep.raw import RawData
from data_prep.settings import DataSettings
from data_prep.sources import Counts
from data_prep.tables import (
    EPISODES_FILE,
    INTERACTIONS_FILE,
    ITEMS_FILE,
    SPLIT,
    TARGET,
    USERS_FILE,
)
from rpp.types import SPLITS

FORMAT = 1
"""Version of the format; older prepared folders are made again."""

Summary = dict[str, Any]


def summarise(
    settings: DataSettings,
    raw: RawData,
    tables: Mapping[str, pl.DataFrame],
    dropped: Mapping[str, int],
) -> Summary:
    """The record of a preparation.

    ``fingerprint`` covers the items, the training interactions and the episodes of training and
    validation users, but not the test users, whose number does not change it.
    ``train_fingerprint`` covers the training data of collaborative models.

    Args:
        settings: The settings.
        raw: The raw files.
        tables: The prepared tables by file name.
        dropped: Number of removed interactions, by reason.
    """
    prepared = Counts(
        *(tables[name].height for name in (USERS_FILE, ITEMS_FILE, INTERACTIONS_FILE))
    )
    paper = settings.source.paper
    episodes = tables[EPISODES_FILE]
    training = tables[INTERACTIONS_FILE].filter(pl.col(SPLIT) == "train").select("user", "item")
    items = tables[ITEMS_FILE]
    files = list(raw.files)
    if settings.candidates == "authors":
        files += list_files(raw.folder, settings.source.lists)
    return {
        "format": FORMAT,
        "settings": settings.record,
        "counts": {
            "paper": paper._asdict() if paper else None,
            "raw": raw.counts._asdict(),
            "prepared": prepared._asdict(),
        },
        "dropped": dropped,
        "explanations": _explanations(settings, raw.counts, prepared, dropped),
        "n_episodes": {split: episodes.filter(split=split).height for split in SPLITS},
        "target_positions": {
            split: np.bincount(
                episodes.filter(split=split)[TARGET], minlength=settings.n_candidates
            ).tolist()
            for split in SPLITS
        },
        "fingerprint": _fingerprint(
            items.select("item_id", "title"), training, episodes.filter(pl.col(SPLIT) != "test")
        ),
        "train_fingerprint": _fingerprint(items.select("item_id"), training),
        "sources": [file_record(path) for path in files],
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("numpy", "polars")},
        },
    }


def _explanations(
    settings: DataSettings, raw: Counts, prepared: Counts, dropped: Mapping[str, int]
) -> list[str]:
    """A sentence for every difference between paper, raw files and prepared tables."""
    source, sentences = settings.source, []
    for key, found, published in zip(Counts._fields, raw, source.paper or raw, strict=True):
        if found != published:
            reason = source.reasons.get((key, found), source.otherwise)
            sentences.append(f"{key}: {found:,} and not {published:,}: {reason}")
    wording = {
        "without_title": "{:,} interactions with items that have no title were left out",
        "without_tag_time": "{:,} interactions with artists the user never tagged were left out",
        "repeated": "{:,} interactions were left out because the user had the item before",
    }
    sentences += [wording[key].format(number) for key, number in dropped.items() if number]
    if prepared != raw and settings.min_interactions:
        sentences.append(
            f"users and items with fewer than {settings.min_interactions} interactions were removed"
            f" until none was left: {raw.users - prepared.users:,} users and"
            f" {raw.items - prepared.items:,} items are gone in all"
            + (", although the paper's counts are of unfiltered files" if source.paper else "")
        )
    if settings.n_targets > 1:
        sentences.append(
            f"training users have up to {settings.n_targets} targets each, and these interactions"
            " are no training interactions: no model is fitted to them"
        )
    if settings.order == "play_count":
        sentences.append(
            "the order is the play count, as in the authors' files: the target is the user's most"
            " played artist, and the history is not chronological"
        )
    if settings.candidates == "authors":
        sentences.append(
            "users and candidates are the authors' lists, without items of the user's own history;"
            " users in both lists are test users"
        )
    return sentences


def _fingerprint(*tables: pl.DataFrame) -> str:
    """SHA-256 of the content of tables, independent of the writer."""
    digest = hashlib.sha256()
    for table in tables:
        for column in table:
            digest.update(f"{column.name} {len(column)}\n".encode())
            if column.dtype == pl.String:
                digest.update("\n".join(column).encode())
                continue
            if column.dtype == pl.List:
                digest.update(_little_endian(column.list.len()))
                column = column.explode()
            digest.update(_little_endian(column))
    return digest.hexdigest()


def _little_endian(numbers: pl.Series) -> memoryview:
    return np.ascontiguousarray(numbers.to_numpy(), dtype="<u4").data  # a copy only if needed


def print_summary(summary: Summary, console: Console) -> None:
    """Print the counts and those of the paper's Table 1, with the reasons of differences."""
    table = Table(title=f"{summary['settings']['name']}: counts", title_justify="left")
    for column in ("", "paper, Table 1", "raw files", "prepared"):
        table.add_column(column, justify="right" if column else "left")
    for key in Counts._fields:
        row = (summary["counts"][column] for column in ("paper", "raw", "prepared"))
        table.add_row(key, *(f"{counts[key]:,}" if counts else "–" for counts in row))
    console.print(table)
    for sentence in summary["explanations"]:
        console.print(f"- {sentence}", highlight=False, markup=False)
