"""What a run says on the terminal: sentences, and tables of one look that fit 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def print_result(text: str) -> None:
    """Print a text as it is, only what is in rich's brackets set off."""
    Console().print(text, highlight=False, soft_wrap=True)


def log_progress(text: str) -> None:
    """Print how far a run has got, beside what it is run for: to the error stream, as it is."""
    Console(stderr=True).print(text, highlight=False, markup=False, soft_wrap=True)


def score_table(title: str, columns: Sequence[str]) -> Table:
    """An empty table.

    Args:
        title: Stands above it.
        columns: The first names what a line is about, the others hold numbers.
    """
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False,
        collapse_padding=True,
    )  # fmt: skip
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    return table


def abbreviated(metric: str) -> str:
    """A metric's name as the head of a narrow column."""
    return metric.upper().replace("NDCG", "N")
