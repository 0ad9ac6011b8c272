"""One raw file to one table with our column names, or one sentence that says what is wrong."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import polars as pl

from data_prep import times
from data_prep.delimited import explain_delimited, scan_delimited
from data_prep.files import IDS, OPTIONAL, RawFile, Scan, open_text, undecodable
from rpp.types import InputError


def read_table(raw: RawFile, path: Path) -> pl.DataFrame:
    """Read a raw file into a table that has our columns, in the order of the file.

    Everything is text, except the column ``order``, which is a float: a number as it stands, a
    date or time as seconds since 1970. A sequence gets its positions as ``order``. In a table with
    an order, which has a row for each interaction, users and items are whole numbers if all are
    written so, and otherwise categorical.

    Raises:
        InputError: If the file cannot be decoded or parsed, is empty, lacks a column, or has an
            empty or unreadable value where one is needed.
    """
    try:
        scan = {"parquet": _scan_parquet, "json": _scan_json}.get(raw.kind, scan_delimited)(
            raw, path
        )
        table = _collect(raw, path, scan)
    except UnicodeDecodeError as error:
        raise undecodable(raw, path, error) from error
    except (pl.exceptions.PolarsError, OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(_explain(raw, path, error)) from error
    blank = table["blank"]
    table = (table.filter(~blank) if blank.any() else table).drop("blank").rechunk()
    return _one_row_each(table) if raw.kind == "sequences" else table


def _collect(raw: RawFile, path: Path, scan: Scan) -> pl.DataFrame:
    """Rows with numbers in place of text, checked."""
    form = None if scan.has_times else raw.timestamp_format
    table = _converted(scan.rows, _whole_number, form).collect(engine="streaming")
    if "order" in table.columns and not all(_is_dense(table[key]) for key in IDS):
        table = _converted(scan.rows, _category, form).collect(engine="streaming")
    blank = table["blank"]
    if blank.all():  # also if there is no row at all
        raise InputError(f"{path} is empty: it has no row of data")
    if scan.n_rows not in (None, len(table)):
        raise InputError(f"{path} holds {scan.n_rows} rows, but {len(table)} were read")
    for column in table.columns:
        if column not in OPTIONAL | {"order", "blank"}:
            _refuse_empty(raw, path, scan, table[column], blank)
    if "order" not in table.columns:
        return table
    if table["order"].null_count() > blank.sum():  # not all are numbers: read them again
        text = scan.rows.select("order").collect()["order"]
        _refuse_empty(raw, path, scan, text, blank)
        table = table.with_columns(_as_times(path, scan, text, form))
    elif form is None and not scan.has_times and times.end_in_a_year(table["order"]):
        first = scan.rows.select("order").first().collect().item()
        raise InputError(
            f"{path}, {scan.place(0)}: {first!r} and all others end in a year, so they do not stand"
            " in their order as numbers: name their form with timestamp_format, such as %m%d%Y"
        )
    return table


def _converted(
    rows: pl.LazyFrame, identify: Callable[[str], pl.Expr], timestamp_format: str | None
) -> pl.LazyFrame:
    """Interactions in 16 bytes a row."""
    if "order" not in rows.collect_schema():
        return rows
    order = pl.col("order")
    return rows.with_columns(
        order=times.seconds(order, timestamp_format) if timestamp_format else times.numbers(order),
        **{key: identify(key) for key in IDS},
    )


def _whole_number(key: str) -> pl.Expr:
    """The number a text stands for, where nothing but its digits stands there."""
    number, n_signs = pl.col(key).cast(pl.UInt32, strict=False), pl.col(key).str.len_bytes()
    without_zeros = (n_signs == 1) | (number >= 10 ** (n_signs.cast(pl.Int64) - 1))
    return pl.when(without_zeros).then(number)


def _category(key: str) -> pl.Expr:
    """Any text; some hundred nanoseconds each, more the more different ones there are."""
    return pl.col(key).cast(pl.Categorical)


def _is_dense(ids: pl.Series) -> bool:
    """Whether a table with a row for every number up to the largest is no larger than the file."""
    return not ids.null_count() and (ids <= 2 * len(ids)).all()


def _as_times(path: Path, scan: Scan, text: pl.Series, timestamp_format: str | None) -> pl.Series:
    """Numbers as they are; if there is none, dates and times as seconds since 1970."""
    order = pl.col("order")
    found = text.to_frame().select(times.numbers(order)).to_series()
    if timestamp_format or found.null_count() == len(found):  # not one number: dates, then
        with suppress(pl.exceptions.PolarsError):  # no form of date either: all rows are bad
            found = text.to_frame().select(times.seconds(order, timestamp_format)).to_series()
    bad = (found.is_null() & text.is_not_null()).arg_true()
    if len(bad):
        reason = (
            f"is not written as timestamp_format={timestamp_format} says"
            if timestamp_format
            else "is neither a number nor a date such as 2024-05-31 or 2024-05-31 18:30:00 (year,"
            " month, day); name another form with timestamp_format, such as %m/%d/%Y"
        )
        raise InputError(f"{path}, {scan.place(bad[0])}: {text[bad[0]]!r} {reason}")
    return found.alias("order")


def _refuse_empty(
    raw: RawFile, path: Path, scan: Scan, values: pl.Series, blank: pl.Series
) -> None:
    """Refuse a row without a needed value, unless nothing at all stands in it."""
    bad = (values.is_null() & ~blank).arg_true()
    if len(bad):
        names = " or ".join(raw.columns[values.name])
        raise InputError(f"{path}, {scan.place(bad[0])}: {names} is empty")


def _scan_json(raw: RawFile, path: Path) -> Scan:
    names = [accepted[0] for accepted in raw.columns.values()]
    table = pl.scan_ndjson(path, schema=dict.fromkeys(names, pl.String))
    selection = {ours: pl.col(name) for ours, name in raw.select(path, names).items()}
    blank = pl.all_horizontal(pl.all().is_null())
    return Scan(table.select(blank=blank, **selection), lambda row: f"line {row + 1}")


def _scan_parquet(raw: RawFile, path: Path) -> Scan:
    table = pl.scan_parquet(path)
    schema = table.collect_schema()
    selection = raw.select(path, schema.names())
    columns = {}
    for ours, name in selection.items():
        column = pl.col(name)
        if schema[name].is_temporal():
            column = column.cast(pl.Datetime("us")).dt.epoch("us") / 1e6
        columns[ours] = column.cast(pl.String)
    return Scan(
        table.select(blank=pl.all_horizontal(pl.all().is_null()), **columns),
        lambda row: f"row {row + 1}",
        has_times="order" in selection and schema[selection["order"]].is_temporal(),
    )


def _one_row_each(sequences: pl.DataFrame) -> pl.DataFrame:
    """Rows of whole sequences to one row per interaction."""
    items = pl.col("item_id_list").str.split(" ").list.concat(pl.col("item_id"))
    return (
        sequences.lazy()
        .select("user_id", item_id=items)
        .with_columns(order=pl.int_ranges(pl.col("item_id").list.len()))
        .explode("item_id", "order")
        .filter(pl.col("item_id") != "")
        .with_columns(pl.col(*IDS).cast(pl.Categorical), pl.col("order").cast(pl.Float64))
        .collect()
    )


def _explain(raw: RawFile, path: Path, error: Exception) -> str:
    """One sentence on why a file could not be read, with the line where one can be found."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    sentence = f"{path} cannot be read: {reason}"
    try:
        if raw.kind == "json":
            _explain_json(raw, path)
        elif raw.kind != "parquet":
            explain_delimited(raw, path)
    except InputError as located:
        return str(located)
    except UnicodeDecodeError as undecoded:
        return str(undecodable(raw, path, undecoded))
    except (OSError, EOFError, zlib.error):
        return f"{path} is damaged or incomplete ({reason}): replace it by a whole copy"
    return sentence


def _explain_json(raw: RawFile, path: Path) -> None:
    with open_text(raw, path) as file:
        for number, line in enumerate(file, start=1):
            try:
                json.loads(line)
            except ValueError as error:
                text = line.rstrip("\r\n")[:80]
                raise InputError(f"{path}, line {number}: not a JSON object: {text!r}") from error
