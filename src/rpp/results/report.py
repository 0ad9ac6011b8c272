"""The report: one self-contained page about a run, for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from rpp.metrics import Interval, chance
from rpp.results.render import cells, p_value, short, signed, with_interval
from rpp.results.rows import Row
from rpp.results.shares import Group, OptionShares
from rpp.results.svg import inline
from rpp.results.users import Examples

if TYPE_CHECKING:
    from rpp.results.publish import Results

SIGNIFICANT = 0.05
"""Below this p-value a difference is called more than chance."""


@dataclass(frozen=True)
class Chart:
    """A chart with what has to be said of it.

    Attributes:
        title: What it shows.
        caption: How to read it.
        figure: The chart.
    """

    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Report:
    """What the page tells besides the results table.

    Attributes:
        n_users: Test users.
        facts: What the run was.
        settings: All arguments of the learner.
        subject: The row that the first sentence is about; ``None`` if there is no such row.
        charts: Charts by name.
        groups: Groups of test users.
        shares: Which options the policy chooses for them, by pattern.
        audit: What the audit of these patterns has found.
        examples: Some test users.
    """

    n_users: int
    facts: Mapping[str, str]
    settings: Mapping[str, str] = field(default_factory=dict)
    subject: Row | None = None
    charts: Mapping[str, Chart] = field(default_factory=dict)
    groups: Sequence[Group] = ()
    shares: Mapping[str, Sequence[OptionShares]] = field(default_factory=dict)
    audit: Sequence[str] = ()
    examples: Examples = field(default_factory=Examples)

    @property
    def headings(self) -> list[tuple[str, int]]:
        """What groups have in common, with the number of them."""
        return [(by, len([*same])) for by, same in groupby(self.groups, lambda each: each.by)]

    @property
    def static_is_marked(self) -> bool:
        """Whether the best static prompt is known."""
        return any(each.is_static for options in self.shares.values() for each in options)


@dataclass(frozen=True)
class Axis:
    """A common axis of intervals that are drawn as bars.

    Attributes:
        low: Its lower end.
        high: Its upper end.
        step: Between two ticks.
    """

    low: float
    high: float
    step: float

    @classmethod
    def around(cls, values: Sequence[float]) -> Axis:
        """An axis with round ends and three to seven ticks."""
        known = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = min(known), max(known)
        step = next((s for s in (0.01, 0.02, 0.05, 0.1) if high - low <= 4 * s), 0.2)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        return cls(first * step, max(last, first + 1) * step, step)

    def at(self, value: float) -> float:
        """Place of a value, in per cent."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    @property
    def ticks(self) -> list[float]:
        """Where the ticks are."""
        n = round((self.high - self.low) / self.step)
        return [self.low + k * self.step for k in range(n + 1)]


def verdict(row: Row, reference: str, n_users: int) -> str:
    """What the difference to the reference says, in one sentence.

    Args:
        row: A row with a difference.
        reference: Name of the reference.
        n_users: Test users.
    """
    if row.gain is None or row.p_value is None or not math.isfinite(row.gain.mean):
        return f"{row.name} cannot be compared with {reference}: no user has an answer to both."
    gain = f"{signed(row.gain)} in NDCG@10, p {p_value(row.p_value)}"
    if row.p_value >= SIGNIFICANT:
        return (
            f"The difference of {row.name} to {reference} ({gain}) is within chance: {n_users} test"
            " users do not show that either of them ranks better."
        )
    better = "better" if row.gain.mean > 0 else "worse"
    return (
        f"{row.name} ranks {better} than {reference} ({gain}): with {n_users} test users this is"
        " more than chance."
    )


def page(results: Results, report: Report, date: str) -> str:
    """The page.

    Args:
        results: The table.
        report: The rest.
        date: When it was made.
    """
    header, lines = cells(results.rows, results.n_candidates)
    scores = [row.scores["ndcg@10"] for row in results.rows]
    gains = [row.gain for row in results.rows if row.gain is not None]
    by_chance = chance("ndcg@10", results.n_candidates)
    return PAGES.get_template("report.html").render(
        results=results,
        report=report,
        date=date,
        facts={**report.facts, "date": date.replace("T", " ")},
        header=header,
        lines=lines,
        chance=by_chance,
        axis=Axis.around([by_chance, *_ends(scores)]),
        gain_axis=Axis.around([0.0, *_ends(gains)]) if gains else None,
        reference=next((row for row in results.rows if row.name == results.reference), None),
    )


def _ends(intervals: Sequence[Interval]) -> list[float]:
    return [end for each in intervals for end in (each.low, each.high)]


PAGES = Environment(
    loader=PackageLoader("rpp.results", "pages"), autoescape=True, undefined=StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip
PAGES.filters |= {"short": short, "signed": signed, "with_interval": with_interval}
PAGES.globals |= {"inline": inline, "verdict": verdict, "p_value": p_value}
