"""Times of the user's own interactions: numbers, ISO dates, and forms that have to be named."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest
from raw_files import QUIET, custom, rows, settings, tables

from data_prep.__main__ import main
from data_prep.prepare import prepare
from data_prep.tables import load_summary
from rpp.types import InputError

pytestmark = pytest.mark.usefixtures("no_outside")


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


def test_first_timestamp_unreadable_is_the_one_reported(tmp_path):
    files = custom(tmp_path, time=lambda t: f"x{t}")
    with pytest.raises(InputError, match=r"line 2: 'x1000' is neither"):
        prepare(settings("custom", None, custom=files), tmp_path / "out", QUIET)


MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep")


def days(time: int) -> tuple[int, int]:
    """Month and day of a time, both from 1 to 12: months ascend, days descend."""
    return time - 999, 1009 - time


@pytest.mark.parametrize(
    ("form", "time"),
    [
        ("%m/%d/%Y", lambda t: "{:02}/{:02}/2024".format(*days(t))),
        ("%m/%d/%y", lambda t: "{}/{}/24".format(*days(t))),
        ("%d.%m.%Y %H:%M", lambda t: "{1:02}.{0:02}.2024 18:30".format(*days(t))),
        ("%m-%d-%Y %I:%M %p", lambda t: "{:02}-{:02}-2024 06:30 PM".format(*days(t))),
        ("%d %b %Y", lambda t: "{1} {2} 2024".format(*days(t), MONTHS[t - 1000])),
        ("%m%d%Y", lambda t: "{:02}{:02}2024".format(*days(t))),
    ],
    ids=["American", "two digits", "German", "afternoon", "names", "digits"],
)
def test_a_form_has_to_be_named(tmp_path, form, time):
    """Day and month were guessed: 1 April stood before 2 February and after 8 January."""
    files = custom(tmp_path / "named", time=time)
    with pytest.raises(InputError, match=r"events\.csv, line 2: .* timestamp_format, such as %m"):
        prepare(settings("custom", None, custom=files), tmp_path / "out", QUIET)
    files = replace(files, timestamp_format=form)
    prepare(settings("custom", None, custom=files), tmp_path / "out", QUIET)
    files = custom(tmp_path / "numbers")
    prepare(settings("custom", None, custom=files), tmp_path / "numbers_out", QUIET)
    assert tables(tmp_path / "out") == tables(tmp_path / "numbers_out")


def test_a_time_of_another_form_than_named_is_refused(tmp_path):
    files = custom(tmp_path, time=lambda t: "2024-05-31" if t == 1001 else f"05/{t - 999:02}/2024")
    line = 2 + next(place for place, (_, _, time) in enumerate(rows()) if time == 1001)
    files = replace(files, timestamp_format="%m/%d/%Y")
    message = rf"line {line}: '2024-05-31' is not written as timestamp_format=%m/%d/%Y says"
    with pytest.raises(InputError, match=message):
        prepare(settings("custom", None, custom=files), tmp_path / "out", QUIET)


def test_a_named_form_in_parquet(tmp_path):
    """It is for text: a column that holds times already needs none."""
    files = custom(tmp_path, time=lambda t: "{:02}/{:02}/2024".format(*days(t)))
    files = replace(files, timestamp_format="%m/%d/%Y")
    prepare(settings("custom", None, custom=files), tmp_path / "csv_out", QUIET)
    texts = pl.read_csv(files.interactions)
    when = {"text": pl.col("when"), "time": pl.col("when").str.to_date("%m/%d/%Y")}
    for name, column in when.items():
        path = tmp_path / f"{name}.parquet"
        texts.with_columns(column).write_parquet(path)
        other = replace(files, interactions=str(path))
        prepare(settings("custom", None, custom=other), tmp_path / f"{name}_out", QUIET)
        assert tables(tmp_path / f"{name}_out") == tables(tmp_path / "csv_out")


def test_a_folder_of_before_there_were_forms_is_used_again(tmp_path):
    files, out = custom(tmp_path), tmp_path / "out"
    prepare(settings("custom", None, custom=files), out, QUIET)
    text = (out / "summary.json").read_text(encoding="utf-8")
    before = text.replace(',\n      "timestamp_format": null', "")
    assert before != text
    (out / "summary.json").write_text(before, encoding="utf-8")
    prepare(settings("custom", None, custom=files), out, QUIET)
    assert (out / "summary.json").read_text(encoding="utf-8") == before
    other = replace(files, timestamp_format="%Y")
    prepare(settings("custom", None, custom=other), out, QUIET)
    assert load_summary(out)["settings"]["custom"]["timestamp_format"] == "%Y"


def test_the_form_on_the_command_line(tmp_path, capsys):
    files = custom(tmp_path, time=lambda t: "{:02}/{:02}/2024".format(*days(t)))
    given = ["custom", "--interactions", files.interactions, "--titles", files.titles]
    given += ["--user-column", "who", "--item-column", "what", "--timestamp-column", "when"]
    given += ["--title-column", "name", "--min-interactions", "0", "--out", str(tmp_path / "out")]
    given += ["--n-train-users", "8", "--n-validation-users", "5", "--n-test-users", "6"]
    assert main(given) == 2
    assert "timestamp_format" in capsys.readouterr().err
    assert main([*given, "--timestamp-format", "%m/%d/%Y"]) == 0
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "such as %m/%d/%Y" in capsys.readouterr().out
