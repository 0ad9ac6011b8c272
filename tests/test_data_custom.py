"""The user's own files: formats, columns, and what is wrong with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from raw_files import (
    QUIET,
    custom,
    ml_1m,
    settings,
    spoil,
    tables,
    write,
)

from data_prep.prepare import prepare
from rpp.data.interactions import load_titles, load_users
from rpp.types import InputError

pytestmark = pytest.mark.usefixtures("no_outside")


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
