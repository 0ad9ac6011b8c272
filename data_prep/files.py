"""Raw files: what one is, how it is opened, and what the summary records of it."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, cast

import polars as pl

from rpp.types import PROFILE, InputError

Kind = Literal["delimited", "sequences", "json", "parquet"]
IDS = ("user_id", "item_id")
OPTIONAL = frozenset({"year", "title", *PROFILE})
"""Our columns that may be empty; all but ``title`` may also be missing from the file."""

_GZIP = b"\x1f\x8b"
_NOT_TEXT = {
    b"PAR1": "a Parquet file: let its name end in .parquet",
    b"PK\x03\x04": "a zip archive or a spreadsheet: unpack it, or save it as CSV",
    b"BZh": "compressed by bzip2: unpack it",
    b"\xfd7zXZ": "compressed by xz: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it",
}
"""First bytes of what is often taken for text, and what to do about it."""


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
        timestamp_format: How times are written, if neither as numbers nor as ISO dates.
    """

    file: str
    columns: Mapping[str, tuple[str, ...]]
    kind: Kind = "delimited"
    separator: str = "\t"
    header: tuple[str, ...] | None = None
    encoding: str = "utf-8"
    quote: str | None = None
    timestamp_format: str | None = None

    @property
    def is_utf8(self) -> bool:
        """Whether the encoding is UTF-8, however it is spelt."""
        return codecs.lookup(self.encoding).name == "utf-8"

    def locate(self, folder: Path) -> Path | None:
        """Path of the file or its gzipped form in ``folder``, if there is one."""
        for path in (folder / self.file, folder / f"{self.file}.gz"):
            if path.is_file():
                return path
        return None

    def select(self, path: Path, names: list[str], hint: str = "") -> dict[str, str]:
        """Our columns and what each is called in a file with the columns ``names``.

        Raises:
            InputError: If one that is needed is missing; the sentence ends in ``hint``.
        """
        selection = {}
        for ours, accepted in self.columns.items():
            present = [name for name in accepted if name in names]
            if present:
                selection[ours] = present[0]
            elif ours == "title" or ours not in OPTIONAL:
                raise InputError(
                    f"{path} has no column {' or '.join(map(repr, accepted))};"
                    f" it has {', '.join(map(repr, names))}{hint}"
                )
        return selection


@dataclass(frozen=True)
class Scan:
    """Rows of a raw file, not yet read.

    Attributes:
        rows: Our columns as text, and ``blank``: whether nothing at all stands in a row.
        place: Where a row, counted from 0, stands in its file: ``line 7``.
        n_rows: Number of rows the file holds, where it was counted apart from reading them.
        has_times: Whether ``order`` was a time in the file, and is in seconds now.
    """

    rows: pl.LazyFrame
    place: Callable[[int], str]
    n_rows: int | None = None
    has_times: bool = False


def open_binary(path: Path) -> IO[bytes]:
    """Open a file, through gzip if its content is gzipped, whatever it is called.

    Raises:
        InputError: If the content is another archive, or no text.
    """
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(_GZIP):
        return cast(IO[bytes], gzip.open(path))
    for magic, sentence in _NOT_TEXT.items():
        if start.startswith(magic):
            raise InputError(f"{path} is {sentence}")
    return path.open("rb")


def open_text(raw: RawFile, path: Path) -> io.TextIOWrapper:
    """Open a text file; line ends stay as they are, a byte order mark is left out."""
    encoding = "utf-8-sig" if raw.is_utf8 else raw.encoding
    return io.TextIOWrapper(cast(io.BufferedReader, open_binary(path)), encoding, newline="")


def undecodable(raw: RawFile, path: Path, error: UnicodeDecodeError) -> InputError:
    """The sentence on a file that is not text of its encoding, with the line."""
    with open_binary(path) as file:
        data = file.read()
    try:
        data.decode(raw.encoding)
    except UnicodeDecodeError as whole:  # of all of the file, not of a part read at once
        error = whole
    before = data[: error.start].decode(raw.encoding, "ignore")
    number = len(re.findall(r"\r\n?|\n", before)) + 1
    return InputError(
        f"{path}, line {number}: not {raw.encoding} text ({error.reason}); save the file as UTF-8"
        " or name its encoding"
    )


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_record(path: Path) -> dict[str, str | int]:
    """Name, size and SHA-256 of a file, for the summary."""
    return {"path": str(path.resolve()), "bytes": path.stat().st_size, "sha256": sha256(path)}
