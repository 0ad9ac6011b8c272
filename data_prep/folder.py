"""The prepared folder: written atomically, and reused for the same settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console

from data_prep.files import sha256
from data_prep.settings import DataSettings
from data_prep.summary import FORMAT, Summary
from data_prep.tables import (
    COLUMNS,
    PREPARED_FILES,
    SUMMARY_FILE,
    load_summary,
    scan_table,
)
from rpp.types import InputError


def reusable(settings: DataSettings, out_dir: Path, console: Console) -> Summary | None:
    """Summary of a folder that was prepared with the given settings."""
    if not (out_dir / SUMMARY_FILE).is_file():
        return None
    try:
        summary = load_summary(out_dir)
        wanted = _given(settings.record)
        if summary.get("format") != FORMAT or _given(summary["settings"]) != wanted:
            return None
        for name in COLUMNS:
            scan_table(out_dir, name)
        changed = next((file["path"] for file in summary["sources"] if _changed(file)), None)
    except (InputError, AttributeError, KeyError, TypeError) as error:
        console.print(f"{out_dir} is damaged and is prepared again ({error})", highlight=False)
        return None
    if changed is not None:
        console.print(f"{changed} has changed since: preparing again", highlight=False)
        return None
    return summary


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those left open, which a folder of an older program does not record."""
    return {
        key: _given(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if value is not None
    }


def _changed(record: Mapping[str, Any]) -> bool:
    """Whether an existing raw file differs from the recorded one."""
    path = Path(record["path"])
    if not path.is_file():
        return False
    return (path.stat().st_size, sha256(path)) != (record["bytes"], record["sha256"])


def write_folder(out_dir: Path, tables: Mapping[str, pl.DataFrame], summary: Summary) -> None:
    """Write a temporary folder, then replace the old one.

    The caller holds the lock of the folder, so files of a killed run can be removed.
    """
    partial = out_dir.with_name(f".{out_dir.name}.partial")
    previous = _previous(out_dir)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        for name, table in tables.items():
            table.write_parquet(partial / name)
        text = json.dumps(summary, indent=2, ensure_ascii=False)
        (partial / SUMMARY_FILE).write_text(text + "\n", encoding="utf-8")
        _keep_other_files(out_dir, partial)
        if out_dir.exists():
            shutil.rmtree(previous, ignore_errors=True)
            out_dir.rename(previous)
        partial.rename(out_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        restore_interrupted(out_dir)
    shutil.rmtree(previous, ignore_errors=True)


def _keep_other_files(old: Path, new: Path) -> None:
    """Copy other files, such as vectors trained on these data, into the new folder."""
    if not old.exists():
        return
    if not old.is_dir():
        raise InputError(f"{old} is a file, not a folder: choose another place for the data")
    for path in old.iterdir():
        if path.name in PREPARED_FILES:
            continue
        if path.is_dir():
            shutil.copytree(path, new / path.name, symlinks=True)
        else:
            shutil.copy2(path, new / path.name, follow_symlinks=False)


def _previous(out_dir: Path) -> Path:
    return out_dir.with_name(f".{out_dir.name}.previous")


def restore_interrupted(out_dir: Path) -> None:
    """Restore the old folder if a run stopped between the two renamings."""
    previous = _previous(out_dir)
    if previous.is_dir() and not out_dir.exists():
        previous.rename(out_dir)
