"""Names of models and adapters by their content: no two alike, and nothing read twice."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from rpp.llms import content
from rpp.llms.content import content_name, file_hash
from rpp.llms.tuned import METADATA_FILE


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RPP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(b"a" * 3_000_000)
    return made


def change(path: Path, place: int) -> None:
    """Change a byte and put the time of the last writing back, as copies with times do."""
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("settled", [0.0, 3600.0])
@pytest.mark.parametrize("place", [0, 1_500_000, 2_999_999])
def test_every_byte_counts(folder, monkeypatch, place, settled):
    """Models that differ between their first and last megabyte answered from one cache."""
    monkeypatch.setattr(content, "SETTLED", settled)
    before = content_name(str(folder))
    assert content_name(str(folder)) == before
    change(folder / "model.safetensors", place)
    assert content_name(str(folder)) != before


def test_a_copy_has_the_same_name_and_another_file_another(folder, tmp_path):
    name = content_name(str(folder))
    shutil.copytree(folder, tmp_path / "copy")
    assert content_name(str(tmp_path / "copy")) == name
    (tmp_path / "copy/added.json").write_text("")
    assert content_name(str(tmp_path / "copy")) != name
    (tmp_path / "copy/added.json").rename(tmp_path / "copy" / METADATA_FILE)
    (tmp_path / "copy/README.md").write_text("words")
    assert content_name(str(tmp_path / "copy")) == name
    (folder / "templates").mkdir()
    (folder / "templates/tool.jinja").write_text("{{ x }}")
    assert content_name(str(folder)) != name


def test_bytes_that_move_between_files_count(tmp_path):
    for name, parts in (("one", ("ab", "c")), ("two", ("a", "bc"))):
        (tmp_path / name).mkdir()
        for k, part in enumerate(parts):
            (tmp_path / name / f"{k}.bin").write_text(part)
    assert content_name(str(tmp_path / "one")) != content_name(str(tmp_path / "two"))


def test_a_settled_file_is_read_once(folder, monkeypatch):
    monkeypatch.setattr(content, "SETTLED", 0.0)
    path = folder / "model.safetensors"
    expected = hashlib.sha256(b"a" * 3_000_000).hexdigest()
    assert file_hash(path) == expected
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert file_hash(path) == expected
    monkeypatch.setattr(content, "SETTLED", 3600.0)  # its times do not tell yet
    with pytest.raises(TypeError):
        file_hash(path)


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"abc"])
def test_a_damaged_or_missing_cache_costs_a_reading_alone(folder, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(content, "SETTLED", 0.0)
    name = content_name(str(folder))
    for kept in (tmp_path / "cache/hashes").iterdir():
        kept.write_bytes(damage)
    assert content_name(str(folder)) == name
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("no folder")
    assert content_name(str(folder)) == name


def test_a_name_of_the_hub_stays_and_a_single_file_is_named_by_its_content(folder):
    assert content_name("someone/model") == "someone/model"
    assert content_name(str(folder / "config.json")) == hashlib.sha256(b"{}").hexdigest()
