"""Command line: ``python -m data_prep NAME``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from rich.console import Console

from data_prep.prepare import DataSettings, prepare
from data_prep.sources import NAMES, SOURCES, CustomFiles
from rpp.types import InputError


def main(args: Sequence[str] | None = None) -> int:
    """Prepare one data set; the return value is the exit code."""
    given = _parser().parse_args(args)
    try:
        prepare(_settings(given), given.out or Path("data") / given.name)
    except (InputError, OSError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        Console(stderr=True).print(
            f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        return 2
    return 0


def _settings(given: argparse.Namespace) -> DataSettings:
    custom = {
        field.name: value
        for field in fields(CustomFiles)
        if (value := getattr(given, field.name)) is not None
    }
    if custom and not {"interactions", "titles"} <= custom.keys():
        raise InputError("your own data need both --interactions FILE and --titles FILE")
    default = SOURCES[given.name].orders[0] if given.name in SOURCES else "time"
    return DataSettings(
        name=given.name,
        raw_dir=given.raw_dir,
        min_interactions=given.min_interactions,
        n_candidates=given.n_candidates,
        candidates=given.candidates,
        order=given.order or default,
        n_train_users=given.n_train_users,
        n_validation_users=given.n_validation_users,
        n_test_users=given.n_test_users,
        n_targets=given.n_targets,
        years=given.years,
        seed=given.seed,
        custom=CustomFiles(**custom) if custom else None,
    )


_CUSTOM_HELP = {
    "interactions": "file with a row for each interaction",
    "titles": "file with the title of each item",
    "profiles": "file with what is known of the users",
    "timestamp_format": "how dates are written, such as %%m/%%d/%%Y; default: numbers or ISO dates",
}


def _metavar(name: str) -> str:
    if name in ("interactions", "titles", "profiles"):
        return "FILE"
    return "NAME" if name.endswith("column") else "VALUE"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data_prep", description=__doc__)
    parser.add_argument("name", choices=NAMES, help="the data set; custom: your own files")
    parser.add_argument("--raw", dest="raw_dir", metavar="FOLDER", help="folder with raw files")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: data/NAME")
    parser.add_argument("--candidates", default="uniform", choices=("uniform", "authors"))
    parser.add_argument(
        "--order",
        choices=("time", "play_count", "tag_time"),
        help="lastfm only: play_count (the default: the target is the most played artist) or"
        " tag_time; all others: time",
    )
    parser.add_argument(
        "--years",
        default=True,
        action=argparse.BooleanOptionalAction,
        help="keep the year at the end of film titles",
    )
    for key in (
        "min_interactions",
        "n_candidates",
        "n_train_users",
        "n_validation_users",
        "n_test_users",
        "n_targets",
        "seed",
    ):
        default = getattr(DataSettings, key)
        option = f"--{key.replace('_', '-')}"
        parser.add_argument(option, type=int, default=default, help=f"default: {default}")
    custom = parser.add_argument_group("custom", "CSV (plain or gzipped) or Parquet")
    for field in fields(CustomFiles):
        default = getattr(CustomFiles, field.name, None)
        custom.add_argument(
            f"--{field.name.replace('_', '-')}",
            metavar=_metavar(field.name),
            help=_CUSTOM_HELP.get(field.name, f"default: {default}"),
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
