"""Write a results table and all that explains it, then print it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from rpp.results.render import cells, markdown, rich_tables
from rpp.results.report import Report, page
from rpp.results.rows import Row, as_frame, as_record
from rpp.terminal import print_result


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


REPORT = "report.html"
"""Name of the page."""


def publish(results: Results, folder: Path, stem: str, report: Callable[[], Report]) -> None:
    """Write the table as CSV, JSON and Markdown with its charts, print it, write the report.

    The files come first: a terminal that is gone costs none of them. The report comes last: a
    fault in it costs nothing else.

    Args:
        results: What to write.
        folder: Where to.
        stem: Name of the files without suffix.
        report: Gathers what else the report tells.
    """
    date = datetime.now().astimezone().isoformat(timespec="seconds")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REPORT).unlink(missing_ok=True)  # that of an earlier run is none of this one
    as_frame(results.rows, results.n_candidates).write_csv(folder / f"{stem}.csv")
    header, lines = cells(results.rows, results.n_candidates)
    text = markdown(results.title, header, lines, results.notes)
    (folder / f"{stem}.md").write_text(text, encoding="utf-8")
    record = {
        "date": date,
        "reference": results.reference,
        "rows": [as_record(row) for row in results.rows],
        **results.record,
    }
    (folder / f"{stem}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for name, figure in results.figures.items():
        figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
    _print(results, folder)
    try:
        (folder / REPORT).write_text(page(results, report(), date), encoding="utf-8")
    except Exception as error:  # whatever it is, the table is worth more
        warnings.warn(f"{folder / REPORT} was not written: {error!r}", stacklevel=2)
    else:
        print_result(f"The report: {folder / REPORT}")


def _print(results: Results, folder: Path) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for table in rich_tables(results.rows, results.title, results.n_candidates, results.reference):
        console.print(table)
    console.print("\n".join([*results.notes, f"Written to {folder}"]), markup=False)
