"""Terminal output: messages, and tables that fit 80 columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


class SafeStream:
    """A stream of text that never ends a run: a closed pipe is silent, a sign it lacks becomes ?.

    Args:
        stream: What is written to.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.is_closed = False  # by the reader
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")

    def write(self, text: str) -> int:
        """Write, or do nothing once the reader is gone."""
        self._unless_closed(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Likewise."""
        self._unless_closed(self.stream.flush)

    def _unless_closed(self, act: Callable[..., Any], *given: str) -> None:
        if self.is_closed:
            return
        try:
            act(*given)
        except BrokenPipeError:
            self.is_closed = True

    def __getattr__(self, name: str) -> Any:
        """Everything else is the stream's."""
        return getattr(self.stream, name)


def print_result(text: str) -> None:
    """Print a result to standard output, with rich's markup."""
    Console().print(text, highlight=False, soft_wrap=True)


def log_progress(text: str) -> None:
    """Print progress to standard error, without markup."""
    Console(stderr=True).print(text, highlight=False, markup=False, soft_wrap=True)


def score_table(title: str, columns: Sequence[str]) -> Table:
    """An empty table.

    Args:
        title: Title of the table.
        columns: Names of the columns; the first has the names of the rows, the others numbers.
    """
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False,
        collapse_padding=True,
    )  # fmt: skip
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    return table


def abbreviated(metric: str) -> str:
    """Short name of a metric, for a narrow column."""
    return metric.upper().replace("NDCG", "N")
