"""CSV files as people have them: quotation marks, line ends, archives; nothing lost silently."""

from __future__ import annotations

import csv
import gzip
import io
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as run
from hypothesis import strategies as st
from raw_files import QUIET, custom, rows, settings, tables, write

from data_prep import delimited
from data_prep.files import RawFile
from data_prep.prepare import prepare
from data_prep.read import read_table
from rpp.data.interactions import load_titles
from rpp.types import InputError

pytestmark = pytest.mark.usefixtures("no_outside")

TITLED = {"item_id": ("item",), "title": ("title",)}


def with_notes(folder: Path, notes: dict[int, str], separator: str = ",") -> RawFile:
    """Interactions with a note behind each: ``notes`` by number of the line, else ``fine``."""
    lines = ["user,item,timestamp,note"]
    lines += [f"{u},{i},{t},{notes.get(n, 'fine')}" for n, (u, i, t) in enumerate(rows(), start=2)]
    write(folder / "log.csv", [line.replace(",", separator) for line in lines])
    columns = {"user_id": ("user",), "item_id": ("item",), "order": ("timestamp",)}
    return RawFile("log.csv", columns, separator=separator, quote='"')


def titles_file(folder: Path, content: str | bytes) -> RawFile:
    """A table of titles with this content."""
    data = content.encode() if isinstance(content, str) else content
    (folder / "titles.csv").write_bytes(data)
    return RawFile("titles.csv", TITLED, separator=",", quote='"')


@pytest.mark.parametrize("separator", [",", "\t", "::"])
@pytest.mark.parametrize(
    "notes",
    [{3: '12" x', 5: '7" z'}, {3: '12"'}, {4: 'a "b" c', 9: 'x""'}],
    ids=["a pair", "one", "balanced"],
)
def test_a_quotation_mark_swallows_no_row(tmp_path, notes, separator):
    """An inch sign in a column that is not even selected once took the rows up to the next one."""
    raw = with_notes(tmp_path, notes, separator)
    table = read_table(raw, tmp_path / "log.csv")
    assert table["order"].to_list() == [time for _, _, time in rows()]


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ({3: '"Heroes" live'}, "line 3: the quotation marks of a field do not match"),
        ({5: '"never closed'}, "line 5: the quotation marks of a field do not match"),
        ({4: '"Heroes', 7: 'five inches"'}, r"line 4: .* ends on line 7, and every line of it"),
    ],
    ids=["text behind", "open", "closed by chance"],
)
def test_a_mark_that_cannot_be_understood_is_named_with_its_line(tmp_path, notes, message):
    raw = with_notes(tmp_path, notes)
    with pytest.raises(InputError, match=rf"log\.csv, {message}"):
        read_table(raw, tmp_path / "log.csv")


def test_a_title_may_hold_marks_separators_and_line_breaks(tmp_path):
    raw = titles_file(tmp_path, 'item,title\n1,"7"" single, part 1"\n2,"two\nlines"\n3,5" disc\n')
    table = read_table(raw, tmp_path / "titles.csv")
    assert table.rows() == [("1", '7" single, part 1'), ("2", "two\nlines"), ("3", '5" disc')]


def test_lines_are_counted_as_lines_where_a_field_covers_several(tmp_path):
    """A row of three fields on line 5 was said to be line 3, which is right."""
    raw = titles_file(tmp_path, 'item,title\n1,"first\nsecond line"\n2,B\n3,C,extra\n')
    with pytest.raises(InputError, match=r"line 5: 3 fields instead of 2: '3,C,extra'"):
        read_table(raw, tmp_path / "titles.csv")
    raw = titles_file(tmp_path, 'item,title\n1,"first\nsecond line"\n\n2,B\n,C\n')
    with pytest.raises(InputError, match=r"line 6: item is empty"):
        read_table(raw, tmp_path / "titles.csv")


def test_a_row_without_what_is_needed_is_no_blank_line(tmp_path):
    """It was left out without a word if all it held stood in columns that are not selected."""
    raw = titles_file(tmp_path, "item,title,genre\n1,A,x\n,,y\n,,\n2,B,z\n")
    with pytest.raises(InputError, match=r"line 3: item is empty"):
        read_table(raw, tmp_path / "titles.csv")
    titles_file(tmp_path, "item,title,genre\n1,A,x\n,,\n2,B,z\n")
    assert read_table(raw, tmp_path / "titles.csv")["item_id"].to_list() == ["1", "2"]


def test_rows_that_were_not_read_are_noticed(tmp_path, monkeypatch):
    """Lines are counted apart from reading them, whatever the parser is."""
    raw = titles_file(tmp_path, "item,title\n1,A\n2,B\n3,C")
    assert len(read_table(raw, tmp_path / "titles.csv")) == 3
    scan_csv = pl.scan_csv
    monkeypatch.setattr(pl, "scan_csv", lambda *args, **kwargs: scan_csv(*args, **kwargs).head(2))
    with pytest.raises(InputError, match=r"titles\.csv holds 3 rows, but 2 were read"):
        read_table(raw, tmp_path / "titles.csv")


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"], ids=repr)
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_of_every_system(tmp_path, newline, last):
    lines = ["item,title", "1,A", "", "2,B"]
    raw = titles_file(tmp_path, newline.join(lines) + newline * last)
    assert read_table(raw, tmp_path / "titles.csv").rows() == [("1", "A"), ("2", "B")]
    titles_file(tmp_path, newline.join([*lines, ",C"]) + newline * last)
    with pytest.raises(InputError, match=r"line 5: item is empty"):
        read_table(raw, tmp_path / "titles.csv")


@pytest.mark.parametrize("length", [0, 1, 2])
def test_a_line_end_may_lie_across_two_parts_of_a_file(tmp_path, length):
    """Lines are counted in parts of a mebibyte."""
    head = "item,title\r\n1,"
    text = "x" * (2**20 - len(head) - length)
    raw = titles_file(tmp_path, f"{head}{text}\r\n2,B\r\n")
    assert delimited._count_plain_lines(raw, tmp_path / "titles.csv") == 3
    assert read_table(raw, tmp_path / "titles.csv")["title"].to_list() == [text, "B"]


@pytest.mark.parametrize("mark", ["", '"'])
def test_a_field_may_be_long(tmp_path, mark):
    """The standard library refuses more than 131,072 characters unless told otherwise."""
    text = "x" * 200_000
    raw = titles_file(tmp_path, f"item,title\n1,{mark}{text}{mark}\n2,B\n")
    assert read_table(raw, tmp_path / "titles.csv")["title"].to_list() == [text, "B"]


@pytest.mark.parametrize("quoted", [True, False])
def test_content_tells_whether_a_file_is_gzipped(tmp_path, quoted):
    """A plain file called .gz was to be deleted, a gzipped one called .csv was no text."""
    item = '"1"' if quoted else "1"
    text = f"when,who,what\n1,1,{item}\n".encode()
    columns = {"user_id": ("who",), "item_id": ("what",), "order": ("when",)}
    for name, data in (("plain.csv.gz", text), ("packed.csv", gzip.compress(text))):
        (tmp_path / name).write_bytes(data)
        raw = RawFile(name, columns, separator=",", quote='"')
        assert read_table(raw, tmp_path / name).height == 1


def _zipped(text: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("titles.csv", text)
    return buffer.getvalue()


def _parquet(_: bytes) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame({"item": ["1"], "title": ["A"]}).write_parquet(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("pack", "message"),
    [
        (_zipped, "is a zip archive or a spreadsheet: unpack it"),
        (_parquet, r"is a Parquet file: let its name end in \.parquet"),
        (lambda text: gzip.compress(text)[:-9], "is damaged or incomplete .*a whole copy"),
        (lambda text: gzip.compress(text)[:12] + b"\xff" * 40, "is damaged or incomplete"),
    ],
    ids=["zip", "parquet", "cut", "spoilt"],
)
def test_a_file_that_is_no_text_says_what_it_is(tmp_path, pack, message):
    raw = titles_file(tmp_path, pack(b"item,title\n" + b"1,A\n" * 50))
    with pytest.raises(InputError, match=message) as caught:
        read_table(raw, tmp_path / "titles.csv")
    assert "delete" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-16"])
@pytest.mark.parametrize("mark", ["", '"'])
def test_encodings(tmp_path, encoding, mark):
    raw = titles_file(tmp_path, f"item,title\n1,{mark}Amélie{mark}\n".encode(encoding))
    table = read_table(replace(raw, encoding=encoding), tmp_path / "titles.csv")
    assert table["title"].to_list() == ["Amélie"]


@pytest.mark.parametrize("start", [b"", b'2,"B"\n'], ids=["plain", "quoted"])
def test_a_line_of_another_encoding_is_named(tmp_path, start):
    raw = titles_file(tmp_path, b"item,title\n1,A\n" + start + "3,Amélie\n".encode("latin-1"))
    line = 4 if start else 3
    with pytest.raises(InputError, match=rf"line {line}: not utf-8 text"):
        read_table(raw, tmp_path / "titles.csv")


def test_a_first_line_without_names(tmp_path):
    raw = titles_file(tmp_path, "\nitem,title\n1,A\n")
    with pytest.raises(InputError, match=r"line 1: blank, but the first line must name"):
        read_table(raw, tmp_path / "titles.csv")
    with pytest.raises(InputError, match="cannot separate the fields"):
        replace(custom(tmp_path), separator='"')


def test_a_prepared_folder_is_the_same_with_and_without_quotation_marks(tmp_path):
    """Either reader gives the same tables."""
    for name in ("plain", "quoted"):
        files = custom(tmp_path / name)
        if name == "quoted":
            lines = Path(files.interactions).read_text().splitlines()
            quoted = [",".join(f'"{field}"' for field in line.split(",")) for line in lines]
            write(Path(files.interactions), quoted)
        prepare(settings("custom", None, custom=files), tmp_path / f"{name}_out", QUIET)
    assert tables(tmp_path / "plain_out") == tables(tmp_path / "quoted_out")
    assert load_titles(tmp_path / "quoted_out")[0] == "Thing, 1"


SIGNS = st.one_of(st.sampled_from('",\r\n \t;ab1'), st.characters(exclude_categories=["Cs"]))
FIELDS, NAMES = st.text(SIGNS, max_size=6), st.text(SIGNS, min_size=1, max_size=6)


@run(deadline=None)
@given(
    records=st.lists(st.tuples(NAMES, FIELDS, FIELDS), min_size=1, max_size=6),
    separator=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_what_was_written_is_what_is_read(records, separator, quoting):
    """Whatever ``csv.writer`` writes comes back; refused is a field whose lines could be rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "titles.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=separator, quoting=quoting)
            writer.writerows([("item", "title", "note"), *records])
        raw = RawFile("titles.csv", TITLED, separator=separator, quote='"')
        try:
            found = read_table(raw, path).rows()
        except InputError as error:
            reason = str(error)
            assert "could be a row of its own" in reason, reason
            assert _covers_lines(records)
        else:
            assert found == [(item, title or None) for item, title, _ in records]


def _covers_lines(records: list[tuple[str, str, str]]) -> bool:
    return any(sign in field for record in records for field in record for sign in "\r\n")


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_rows_are_read_in_chunks_of_any_size(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(delimited, "_CHUNK", chunk)
    raw = titles_file(tmp_path, 'item,title\n1,"A"\n2,"B"\n3,"C"\n')
    table = read_table(raw, tmp_path / "titles.csv")
    assert table.rows() == [("1", "A"), ("2", "B"), ("3", "C")]
    titles_file(tmp_path, 'item,title\n1,"A"\n2,"B"\n3,"C"\n,"D"\n')
    with pytest.raises(InputError, match=r"line 5: item is empty"):
        read_table(raw, tmp_path / "titles.csv")
