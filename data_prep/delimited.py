"""Delimited text: read by Polars where nothing is quoted, otherwise by the standard CSV reader.

Polars is several times as fast, but a quotation mark inside an unquoted field swallows rows there
without a word. A file with a quotation mark, or with lines that end in a carriage return alone, is
therefore read by :mod:`csv`, which tells what does not match, and on which line.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl

from data_prep.files import RawFile, Scan, open_binary, open_text, undecodable
from rpp.types import InputError

csv.field_size_limit(2**31 - 1)  # a description may be longer than the 131,072 of the default

_RECBOLE_TYPE = re.compile(r":(token|token_seq|float|float_seq)$")
_ONE_SIGN = "\x1f"  # stands for a separator of several signs, which no CSV reader can take
_CHUNK = 100_000
"""Rows that are made into a table at once."""


def scan_delimited(raw: RawFile, path: Path) -> Scan:
    """Our columns of a delimited text.

    Raises:
        InputError: If the file is empty, lacks a column or has two of one name; if it has to be
            read by the standard CSV reader and a line is not as it should be.
    """
    names = _column_names(raw, path)
    hint = ""
    if len(names) == 1:
        other = next((sign for sign in "\t,;|" if sign in names[0]), None)
        hint = f"; is the separator {other!r} and not {raw.separator!r}?" if other else ""
    selection = raw.select(path, names, hint)
    n_lines = None
    if raw.quote is not None and (n_lines := _count_plain_lines(raw, path)) is None:
        return _parse(raw, path, names, selection)
    n_before = 0 if raw.header else 1
    table = pl.scan_csv(
        _source(raw, path),
        separator=_ONE_SIGN if _is_rewritten(raw) else raw.separator,
        has_header=False,
        skip_lines=n_before,
        schema=dict.fromkeys(names, pl.String),
        quote_char=None,
    )
    blank = pl.all_horizontal(pl.all().is_null())
    return Scan(
        table.select(blank=blank, **{ours: pl.col(name) for ours, name in selection.items()}),
        lambda row: f"line {row + 1 + n_before}",
        None if n_lines is None else n_lines - n_before,
    )


def explain_delimited(raw: RawFile, path: Path) -> None:
    """Look for the line for which a file could not be read.

    Raises:
        InputError: On the first line that is no text or has another number of fields.
    """
    n_fields = len(raw.header) if raw.header else 0
    for number, fields in _records(raw, path):
        n_fields = n_fields or len(fields)
        if len(fields) not in (0, n_fields):
            raise _wrong_number(raw, path, number, fields, n_fields)


def _column_names(raw: RawFile, path: Path) -> list[str]:
    first = next(_records(raw, path), None)
    if first is None:
        raise InputError(f"{path} is empty")
    fields = first[1]
    if not fields:
        raise InputError(f"{path}, line 1: blank, but the first line must name the columns")
    names = list(raw.header or (_RECBOLE_TYPE.sub("", name) for name in fields))
    if raw.header:
        names += [f"column {place}" for place in range(len(names), len(fields))]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path} has two columns named {twice!r}")
    return names


def _is_rewritten(raw: RawFile) -> bool:
    """Whether Polars cannot read the file as it is."""
    return len(raw.separator.encode()) > 1 or not raw.is_utf8


def _source(raw: RawFile, path: Path) -> Path | IO[bytes]:
    if not _is_rewritten(raw):
        return path
    with open_text(raw, path) as file:
        return io.BytesIO(file.read().replace(raw.separator, _ONE_SIGN).encode())


def _count_plain_lines(raw: RawFile, path: Path) -> int | None:
    """Number of lines; nothing if one is quoted or ends in a carriage return alone."""
    assert raw.quote is not None
    n_lines, held, last = 0, "", "\n"
    for text in _chunks(raw, path):
        chunk = held + text
        held = "\r" if chunk.endswith("\r") else ""  # its line feed may come next
        n_returns = chunk.count("\r") - len(held)
        if raw.quote in chunk or (n_returns and n_returns != chunk.count("\r\n")):
            return None
        n_lines += chunk.count("\n")
        last = chunk[-1]
    return None if held else n_lines + (last != "\n")


def _chunks(raw: RawFile, path: Path) -> Iterator[str]:
    """A text in parts in which quotation marks and line ends are what they are."""
    if raw.is_utf8:  # they are single bytes there, so that the rest need not be decoded
        with open_binary(path) as file:
            while data := file.read(1 << 20):
                yield data.decode("latin-1")
    else:
        with open_text(raw, path) as decoded:
            while text := decoded.read(1 << 20):
                yield text


def _parse(raw: RawFile, path: Path, names: list[str], selection: dict[str, str]) -> Scan:
    """All rows by the standard CSV reader, and the line on which each begins."""
    places = {ours: names.index(name) for ours, name in selection.items()}
    rows = _checked(raw, path, len(names))
    tables, lines = [pl.DataFrame(schema=dict.fromkeys(places, pl.String))], []
    while chunk := list(islice(rows, _CHUNK)):
        columns = {
            ours: [fields[place] or None if place < len(fields) else None for _, fields in chunk]
            for ours, place in places.items()
        }
        tables.append(pl.DataFrame(columns, schema=dict.fromkeys(places, pl.String)))
        lines.append(np.array([number for number, _ in chunk]))
    starts = np.concatenate(lines) if lines else np.zeros(0, dtype=int)
    table = pl.concat(tables).lazy().with_columns(blank=pl.lit(False))
    return Scan(table, lambda row: f"line {starts[row]}")


def _checked(raw: RawFile, path: Path, n_fields: int) -> Iterator[tuple[int, list[str]]]:
    """Records with something in them, none with more fields than there are columns."""
    n_before = 0 if raw.header else 1
    for number, fields in islice(_records(raw, path, n_fields), n_before, None):
        if len(fields) > n_fields:
            raise _wrong_number(raw, path, number, fields, n_fields)
        if any(fields):
            yield number, fields


def _wrong_number(
    raw: RawFile, path: Path, number: int, fields: list[str], n_fields: int
) -> InputError:
    text = raw.separator.join(fields)
    return InputError(
        f"{path}, line {number}: {len(fields)} fields instead of {n_fields}: {text[:80]!r}"
    )


def _records(
    raw: RawFile, path: Path, n_fields: int | None = None
) -> Iterator[tuple[int, list[str]]]:
    """The line on which each record begins, from 1, and its fields; none in a blank line.

    Raises:
        InputError: If quotation marks do not match, or the text cannot be decoded; with
            ``n_fields``, also if a quoted field covers lines that look like records themselves.
    """
    try:
        with open_text(raw, path) as file:
            if raw.quote is None:
                for number, line in enumerate(file, start=1):
                    text = line.rstrip("\r\n")
                    yield number, text.split(raw.separator) if text else []
            else:
                yield from _quoted_records(raw, path, file, n_fields)
    except UnicodeDecodeError as error:
        raise undecodable(raw, path, error) from error


def _quoted_records(
    raw: RawFile, path: Path, file: io.TextIOWrapper, n_fields: int | None
) -> Iterator[tuple[int, list[str]]]:
    several = len(raw.separator) > 1
    sign = _ONE_SIGN if several else raw.separator
    covered: list[str] = []  # the lines of one record

    def lines() -> Iterator[str]:
        for line in file:
            covered.append(line.replace(raw.separator, sign) if several else line)
            yield covered[-1]

    reader = csv.reader(lines(), delimiter=sign, quotechar=raw.quote, strict=True)
    start = 1
    try:
        for fields in reader:
            if n_fields and len(covered) > 1 and _are_records(covered, sign, n_fields):
                raise InputError(
                    f"{path}, line {start}: a quotation mark opens a field that ends on line"
                    f" {reader.line_num}, and every line of it could be a row of its own: write a"
                    " mark that belongs to the text twice, within marks, or the field on one line"
                )
            yield (
                start,
                [field.replace(sign, raw.separator) for field in fields] if several else fields,
            )
            start = reader.line_num + 1
            covered.clear()
    except csv.Error as error:
        raise InputError(
            f"{path}, line {start}: the quotation marks of a field do not match ({error}): write a"
            " mark that belongs to the text twice, within marks"
        ) from error


def _are_records(lines: list[str], sign: str, n_fields: int) -> bool:
    """Whether each line has as many fields as there are columns if marks mean nothing."""
    return all(line.count(sign) == n_fields - 1 for line in lines)
