"""The prepared folder: used again where it fits, whole or not there."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from raw_files import (
    QUIET,
    ml_1m,
    rows,
    settings,
    tables,
)

from data_prep import folder as folder_module
from data_prep.prepare import prepare
from data_prep.tables import PREPARED_FILES, load_summary
from rpp.data.episodes import load_episodes
from rpp.data.interactions import load_titles, load_training_pairs, load_users
from rpp.types import InputError

pytestmark = pytest.mark.usefixtures("no_outside")


def test_prepared_folder_is_used_again(tmp_path):
    """Equal settings cost nothing; other settings, damage or a changed file prepare anew."""
    raw, out = ml_1m(tmp_path / "raw"), tmp_path / "out"
    first = prepare(settings("ml-1m", raw), out, QUIET)
    stamp = (out / "summary.json").stat().st_mtime_ns
    assert prepare(settings("ml-1m", raw), out, QUIET) == first
    assert (out / "summary.json").stat().st_mtime_ns == stamp
    prepare(settings("ml-1m", raw, seed=2), out, QUIET)
    assert load_summary(out)["settings"]["seed"] == 2
    for name in PREPARED_FILES:
        (out / name).write_bytes(b"damaged")
        with pytest.raises(InputError, match=name):
            load_episodes(out, "train") if name == "episodes.parquet" else _read(name, out)
        prepare(settings("ml-1m", raw, seed=2), out, QUIET)
        load_episodes(out, "train")
        _read(name, out)
    ml_1m(raw, rows()[:-1])
    again = prepare(settings("ml-1m", raw, seed=2), out, QUIET)
    assert again["counts"]["raw"]["interactions"] == len(rows()) - 1


def _read(name: str, folder: Path) -> None:
    {
        "interactions.parquet": load_training_pairs,
        "items.parquet": load_titles,
        "users.parquet": load_users,
        "summary.json": load_summary,
        "episodes.parquet": lambda folder: load_episodes(folder, "test"),
    }[name](folder)


@pytest.mark.parametrize("moment", ["parquet", "summary", "first rename", "second rename"])
def test_a_failure_midway_leaves_the_former_folder(tmp_path, monkeypatch, moment):
    """A full disk or an interruption at any moment; foreign files survive both ways."""
    raw, out = ml_1m(tmp_path / "raw"), tmp_path / "out"
    prepare(settings("ml-1m", raw), out, QUIET)
    (out / "collaborative.safetensors").write_bytes(b"vectors")
    (out / "plots").mkdir()
    (out / "plots/a.txt").write_text("a")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if moment == "parquet":
            patch.setattr(pl.DataFrame, "write_parquet", full)
        elif moment == "summary":
            patch.setattr(folder_module.json, "dumps", full)
        else:
            rename, wanted = Path.rename, "out" if moment == "first rename" else ".out.partial"

            def fail_once(self: Path, target: Path) -> Path:
                if self.name.startswith(wanted):
                    full()
                return rename(self, target)

            patch.setattr(Path, "rename", fail_once)
        with pytest.raises(OSError, match="No space left"):
            prepare(settings("ml-1m", raw, seed=1), out, QUIET)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]
    prepare(settings("ml-1m", raw, seed=1), out, QUIET)
    assert load_summary(out)["settings"]["seed"] == 1
    assert (out / "collaborative.safetensors").read_bytes() == b"vectors"
    assert (out / "plots/a.txt").read_text() == "a"
    assert not [path for path in tmp_path.iterdir() if "previous" in path.name]


def test_a_run_killed_between_the_renamings_is_undone(tmp_path):
    raw, out = ml_1m(tmp_path / "raw"), tmp_path / "out"
    prepare(settings("ml-1m", raw), out, QUIET)
    content = tables(out)
    out.rename(tmp_path / ".out.previous")
    prepare(settings("ml-1m", raw), out, QUIET)
    assert tables(out) == content
    assert not (tmp_path / ".out.previous").exists()
