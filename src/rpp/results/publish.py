"""Write a results table and all that explains it, then print it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from rpp.results.render import cells, markdown, page, rich_tables
from rpp.results.rows import Row, as_frame, as_record


@dataclass(frozen=True)
class Results:
    """A table of methods on the same test users.

    Attributes:
        title: Data set, users, candidates.
        rows: The methods.
        reference: The row that differences are taken to.
        n_candidates: ``M``, which decides what chance is.
        notes: What has to be known to read the table.
        figures: Charts by file name.
        record: What else the JSON file tells.
    """

    title: str
    rows: Sequence[Row]
    reference: str
    n_candidates: int
    notes: Sequence[str]
    figures: Mapping[str, Figure]
    record: Mapping[str, Any]


def publish(results: Results, folder: Path, stem: str) -> None:
    """Write the table as CSV, JSON, Markdown and HTML with its charts, and print it.

    The files come first: a terminal that is gone costs none of them.

    Args:
        results: What to write.
        folder: Where to.
        stem: Name of the files without suffix.
    """
    folder.mkdir(parents=True, exist_ok=True)
    as_frame(results.rows, results.n_candidates).write_csv(folder / f"{stem}.csv")
    header, lines = cells(results.rows, results.n_candidates)
    text = markdown(results.title, header, lines, results.notes)
    (folder / f"{stem}.md").write_text(text, encoding="utf-8")
    html = page(results.title, header, lines, results.notes, results.figures)
    (folder / f"{stem}.html").write_text(html, encoding="utf-8")
    record = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "reference": results.reference,
        "rows": [as_record(row) for row in results.rows],
        **results.record,
    }
    (folder / f"{stem}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for name, figure in results.figures.items():
        figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
    _print(results, folder)


def _print(results: Results, folder: Path) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for table in rich_tables(results.rows, results.title, results.n_candidates, results.reference):
        console.print(table)
    console.print("\n".join([*results.notes, f"Written to {folder}"]), markup=False)
