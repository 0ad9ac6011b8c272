"""One raw file to one table with our column names, or one sentence that says what is wrong."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, cast

import polars as pl

from rpp.types import PROFILE, InputError

Kind = Literal["delimited", "sequences", "json", "parquet"]
IDS = ("user_id", "item_id")
OPTIONAL = frozenset({"year", "title", *PROFILE})
"""Our columns that may be empty; all but ``title`` may also be missing from the file."""

_RECBOLE_TYPE = re.compile(r":(token|token_seq|float|float_seq)$")
_ONE_SIGN = "\x1f"  # stands for a separator of several signs, which the CSV reader cannot take


@dataclass(frozen=True)
class RawFile:
    """A raw file and how its columns become ours.

    Attributes:
        file: Its name; the same with ``.gz`` is accepted too.
        columns: Our column to the names it may have in the file, the first present one is used.
        kind: ``delimited`` text; ``sequences``: delimited text with the columns
            ``item_id_list`` (one user's items, oldest first) and ``item_id`` (the last one);
            ``json``: one JSON object per line; ``parquet``.
        separator: Of delimited text; one or several signs.
        header: Names of the columns if the file has no header line.
        encoding: Of text.
        quote: Sign around fields that hold the separator, if the format knows one.
    """

    file: str
    columns: Mapping[str, tuple[str, ...]]
    kind: Kind = "delimited"
    separator: str = "\t"
    header: tuple[str, ...] | None = None
    encoding: str = "utf-8"
    quote: str | None = None

    def locate(self, folder: Path) -> Path | None:
        """Path of the file or its gzipped form in ``folder``, if there is one."""
        for path in (folder / self.file, folder / f"{self.file}.gz"):
            if path.is_file():
                return path
        return None


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
    scan = {"parquet": _scan_parquet, "json": _scan_json}.get(raw.kind, _scan_delimited)
    try:
        text = scan(raw, path)
        table = _converted(text, _whole_number).collect(engine="streaming")
        if "order" in table.columns and not all(_is_dense(table[key]) for key in IDS):
            table = _converted(text, _category).collect(engine="streaming")
        blank = table["blank"]
        if blank.all():  # also if there is no row at all
            raise InputError(f"{path} is empty: it has no row of data")
        for column in table.columns:
            if column not in OPTIONAL | {"order", "blank"}:
                _refuse_empty(raw, path, table[column], blank)
        if "order" in table.columns and table["order"].null_count() > blank.sum():
            order = text.select("order").collect()["order"]  # not all are numbers: read them again
            _refuse_empty(raw, path, order, blank)
            table = table.with_columns(_as_number(raw, path, order))
    except (pl.exceptions.PolarsError, OSError, EOFError, ValueError) as error:
        raise InputError(_explain(raw, path, error)) from error
    table = (table.filter(~blank) if blank.any() else table).drop("blank").rechunk()
    return _one_row_each(table) if raw.kind == "sequences" else table


def _converted(text: pl.LazyFrame, identify: Callable[[str], pl.Expr]) -> pl.LazyFrame:
    """Interactions in 16 bytes a row, and whether the row is blank."""
    columns = {"blank": pl.all_horizontal(pl.all().is_null())}
    if "order" in text.collect_schema():
        number = pl.col("order").cast(pl.Float64, strict=False)
        columns["order"] = pl.when(number.is_finite()).then(number)
        columns |= {key: identify(key) for key in IDS}
    return text.with_columns(**columns)


def _whole_number(key: str) -> pl.Expr:
    """The number a text stands for, where nothing but its digits stands there."""
    number, n_signs = pl.col(key).cast(pl.UInt32, strict=False), pl.col(key).str.len_bytes()
    without_zeros = (n_signs == 1) | (number >= 10 ** (n_signs.cast(pl.Int64) - 1))
    return pl.when(without_zeros).then(number)


def _category(key: str) -> pl.Expr:
    """Any text; some hundred nanoseconds each, more the more different ones there are."""
    return pl.col(key).cast(pl.Categorical)


def _is_dense(numbers: pl.Series) -> bool:
    """Whether a table with a row for every number up to the largest is no larger than the file."""
    return not numbers.null_count() and (numbers <= 2 * len(numbers)).all()


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_record(path: Path) -> dict[str, str | int]:
    """Name, size and SHA-256 of a file, for the summary."""
    return {"path": str(path.resolve()), "bytes": path.stat().st_size, "sha256": sha256(path)}


def _scan_delimited(raw: RawFile, path: Path) -> pl.LazyFrame:
    first = next(_lines(raw, path), (0, ""))[1]
    if not first:
        raise InputError(f"{path} is empty")
    names = list(raw.header or (_RECBOLE_TYPE.sub("", name) for name in _fields(raw, first)))
    if raw.header:
        names += [f"column {place}" for place in range(len(names), len(_fields(raw, first)))]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path} has two columns named {twice!r}")
    selection = _selection(raw, path, names, first)
    source: Path | IO[bytes] = path
    if len(raw.separator) > 1 or raw.encoding != "utf-8":
        with _open(path) as file:
            text = file.read().decode(raw.encoding)
        source = io.BytesIO(text.replace(raw.separator, _ONE_SIGN).encode())
    return pl.scan_csv(
        source,
        separator=raw.separator if source is path else _ONE_SIGN,
        has_header=False,
        skip_lines=0 if raw.header else 1,
        schema=dict.fromkeys(names, pl.String),
        quote_char=raw.quote,
    ).select(**selection)


def _scan_json(raw: RawFile, path: Path) -> pl.LazyFrame:
    names = {names[0]: pl.String for names in raw.columns.values()}
    table = pl.scan_ndjson(path, schema=names)
    return table.select(**_selection(raw, path, list(names), ""))


def _scan_parquet(raw: RawFile, path: Path) -> pl.LazyFrame:
    table = pl.scan_parquet(path)
    schema = table.collect_schema()
    selection = _selection(raw, path, schema.names(), "")
    temporal = [name for name, kind in schema.items() if kind.is_temporal()]
    seconds = pl.col(temporal).cast(pl.Datetime("us")).dt.epoch("us") / 1e6
    return table.with_columns(seconds).select(
        column.cast(pl.String).alias(name) for name, column in selection.items()
    )


def _selection(raw: RawFile, path: Path, names: list[str], first: str) -> dict[str, pl.Expr]:
    """Our columns as expressions of those of the file."""
    selection = {}
    for ours, accepted in raw.columns.items():
        present = [name for name in accepted if name in names]
        if present:
            selection[ours] = pl.col(present[0])
        elif ours == "title" or ours not in OPTIONAL:
            hint = ""
            if len(names) == 1:
                other = next((sign for sign in "\t,;|" if sign in first), None)
                hint = f"; is the separator {other!r} and not {raw.separator!r}?" if other else ""
            raise InputError(
                f"{path} has no column {' or '.join(map(repr, accepted))};"
                f" it has {', '.join(map(repr, names))}{hint}"
            )
    return selection


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


def _as_number(raw: RawFile, path: Path, values: pl.Series) -> pl.Series:
    """Numbers as they are, otherwise dates and times as seconds since 1970."""
    numbers = values.cast(pl.Float64, strict=False)
    if numbers.null_count() == len(values):  # not one number: dates, then
        try:
            dates = values.str.to_datetime(strict=False, time_unit="us", time_zone="UTC")
            numbers = dates.dt.epoch("us").cast(pl.Float64) / 1e6
        except pl.exceptions.PolarsError:
            pass  # no known form of date either: the first row is reported
    bad = (~numbers.is_finite().fill_null(False) & values.is_not_null()).arg_true()
    if len(bad):
        raise InputError(
            f"{path}, {_place(raw, bad[0])}: {values[bad[0]]!r} is neither a number nor a date such"
            " as 2024-05-31 or 2024-05-31 18:30:00"
        )
    return numbers.alias("order")


def _refuse_empty(raw: RawFile, path: Path, values: pl.Series, blank: pl.Series) -> None:
    """Refuse a row without a needed value, unless it is a blank line."""
    bad = (values.is_null() & ~blank).arg_true()
    if len(bad):
        names = " or ".join(raw.columns[values.name])
        raise InputError(f"{path}, {_place(raw, bad[0])}: {names} is empty")


def _place(raw: RawFile, row: int) -> str:
    """Where a row of data stands in its file."""
    if raw.kind == "parquet":
        return f"row {row + 1}"
    return f"line {row + 1 if raw.header or raw.kind == 'json' else row + 2}"


def _explain(raw: RawFile, path: Path, error: Exception) -> str:
    """One sentence on why a file could not be read, with the line where one can be found."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    sentence = f"{path} cannot be read: {reason}"
    if raw.kind == "parquet":
        return sentence
    expected = len(raw.header) if raw.header else 0
    try:
        for number, line in _lines(raw, path):
            if raw.kind == "json":
                json.loads(line)
                continue
            found = len(_fields(raw, line))
            expected = expected or found
            if found != expected and line:
                return f"{path}, line {number}: {found} fields instead of {expected}: {line[:80]!r}"
    except InputError as located:
        return str(located)
    except (OSError, EOFError):
        return f"{path} is damaged or incomplete ({reason}): delete it and fetch it again"
    except ValueError:
        return f"{path}, line {number}: not a JSON object: {line[:80]!r}"
    return sentence


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path))
    return path.open("rb")


def _lines(raw: RawFile, path: Path) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line."""
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if raw.encoding == "utf-8" else raw.encoding)
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}, line {number}: not {raw.encoding} text ({error.reason}); save the"
                    " file as UTF-8 or name its encoding"
                ) from error
            yield number, text.rstrip("\r\n")


def _fields(raw: RawFile, line: str) -> list[str]:
    if raw.quote is None:
        return line.split(raw.separator)
    return next(csv.reader([line], delimiter=raw.separator, quotechar=raw.quote), [])
