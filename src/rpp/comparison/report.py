"""The table of a comparison: on the terminal, as CSV, Markdown and HTML, with charts."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment
from lightning import Callback, Trainer
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor

from rpp import charts
from rpp.comparison.controls import CHECKED
from rpp.comparison.module import Comparison, Cost
from rpp.comparison.policy import ExchangedPrompts, Policy
from rpp.comparison.published import PAPER, PUBLISHED, Figures
from rpp.metrics import (
    CHANCE,
    METRICS,
    Interval,
    chance,
    chance_row,
    mean_interval,
    paired_difference,
    paired_p_value,
    target_ranks,
)
from rpp.terminal import abbreviated, score_table
from rpp.types import InputError, TargetAccessError, final_scoring

ORACLE = " (oracle)"
"""Stands behind the name of a method that looks at the test targets."""

UNFINISHED = "unfinished"
"""Subfolder of the table of a run that was stopped."""


@dataclass(frozen=True)
class Row:
    """One method of the table.

    Attributes:
        name: The method's.
        scores: Every metric with its interval over users.
        gain: NDCG@10 less that of the reference, over the same users; ``None`` for itself.
        p_value: Of no such difference, two-sided, not corrected for the number of methods.
        cost: What the method has cost; ``None`` for a recommender.
        seconds: Time to learn and rank.
        valid: Share of replies that named every candidate; ``None`` for a recommender.
        published: The paper's NDCG@1, @5 and @10, where it has them.
    """

    name: str
    scores: Mapping[str, Interval]
    gain: Interval | None
    p_value: float | None
    cost: Cost | None
    seconds: float
    valid: float | None
    published: Figures | None


def rows(comparison: Comparison, ranks: Mapping[str, Tensor], data_name: str) -> list[Row]:
    """The table of what has been run.

    Args:
        comparison: After its test.
        ranks: Rank of every user's target by method, ``(B,)`` each.
        data_name: Whose published figures to set beside.
    """
    reference = ranks.get(comparison.reference)
    # the paper's users had ten candidates
    published = PUBLISHED.get(data_name, {}) if len(comparison.users[0].candidates) == 10 else {}
    table = []
    for result in comparison.results:
        name = result.method.name
        gain = p_value = None
        if reference is not None and name != comparison.reference:
            ours, theirs = (METRICS["ndcg@10"](each) for each in (ranks[name], reference))
            gain = paired_difference(ours, theirs)
            p_value = paired_p_value(ours, theirs)
        table.append(
            Row(
                name + ORACLE * result.peeks,
                {metric: mean_interval(f(ranks[name])) for metric, f in METRICS.items()},
                gain,
                p_value,
                None if result.valid is None else result.cost,
                result.cost.seconds,
                result.valid,
                published.get(name),
            )
        )
    return table


class ComparisonReport(Callback):
    """Prints the table and writes it with all that explains it.

    Args:
        folder: Where ``comparison.{csv,json,md,html}`` and the charts go; those of a run that was
            stopped go to ``unfinished`` in it.
    """

    def __init__(self, folder: str = "results/comparison") -> None:
        self.folder = Path(folder)

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Report the methods that were through before a budget, the user or a fault ended the run.

        What is whole of an earlier run stays. There is no report where a control has skill or a
        method has looked at a test target.
        """
        unsound = isinstance(exception, InputError | TargetAccessError)
        if trainer.testing and not unsound:
            self._report(trainer, pl_module, self.folder / UNFINISHED)

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Print and write."""
        self._report(trainer, pl_module, self.folder)

    def _report(self, trainer: Trainer, pl_module: Any, folder: Path) -> None:
        if not isinstance(pl_module, Comparison) or not pl_module.results:
            return
        data = trainer.datamodule.summary  # type: ignore[attr-defined]
        ranks = pl_module.target_ranks()
        table = rows(pl_module, ranks, data["settings"]["name"])
        n_users, n_candidates = len(pl_module.users), len(pl_module.users[0].candidates)
        title = f"{data['settings']['name']}, {n_users} test users, {n_candidates} candidates"
        frame = as_frame(table, n_candidates)
        notes = _notes(pl_module, ranks, n_candidates)
        if any(row.published for row in table):
            notes.append(PAPER)
        console = Console(highlight=False, soft_wrap=True)
        for each in _rich_tables(table, title, n_candidates, pl_module.reference):
            console.print(each)
        console.print("\n".join(notes), markup=False)
        folder.mkdir(parents=True, exist_ok=True)
        frame.write_csv(folder / "comparison.csv")
        figures = _figures(pl_module, ranks, table, n_candidates)
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
        header, cells = _cells(table, n_candidates)
        markdown = "\n".join(
            [
                f"## {title}\n",
                *("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header))),
                *("| " + " | ".join(line) + " |" for line in cells),
                "",
                *(f"- {note}" for note in notes),
            ]
        )
        (folder / "comparison.md").write_text(markdown + "\n", encoding="utf-8")
        pictures = {name: _data_uri(figure) for name, figure in figures.items()}
        page = PAGE.render(title=title, header=header, cells=cells, notes=notes, pictures=pictures)
        (folder / "comparison.html").write_text(page, encoding="utf-8")
        record = {
            "date": datetime.now().astimezone().isoformat(timespec="seconds"),
            "data": data,
            "reference": pl_module.reference,
            "rows": [_record(row) for row in table],
            "controls": {
                name: {metric: float(METRICS[metric](ranks).mean()) for metric in CHECKED}
                for name, ranks in pl_module.control_ranks.items()
            },
            "not_run": pl_module.not_run,
            "not_reached": pl_module.not_reached,
            "environment": pl_module.task.ranker.settings,
            "seed": pl_module.seed,
        }
        (folder / "comparison.json").write_text(json.dumps(record, indent=2) + "\n")
        console.print(f"Written to {folder}", markup=False)
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)  # the whole takes a part's place


def as_frame(table: Sequence[Row], n_candidates: int) -> pl.DataFrame:
    """The table with one column per number; chance last."""
    lines: list[dict[str, Any]] = []
    for row in table:
        line: dict[str, Any] = {"method": row.name}
        for metric, value in row.scores.items():
            line |= {metric: value.mean, f"{metric}_low": value.low, f"{metric}_high": value.high}
        gain = row.gain or Interval(*[float("nan")] * 3)
        line |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
        line |= {"p_value": row.p_value, "valid": row.valid, "seconds": row.seconds}
        cost = {} if row.cost is None else asdict(row.cost)
        line |= {key: cost.get(key) for key in asdict(Cost()) if key != "seconds"}
        published = row.published or (None,) * 3
        line |= dict(zip(("paper_ndcg@1", "paper_ndcg@5", "paper_ndcg@10"), published, strict=True))
        lines.append(line)
    frame = pl.DataFrame(lines, infer_schema_length=None)
    last = pl.DataFrame([{"method": CHANCE} | {m: chance(m, n_candidates) for m in METRICS}])
    return pl.concat([frame, last], how="diagonal_relaxed")


def _record(row: Row) -> dict[str, Any]:
    return asdict(row) | {
        "scores": {metric: value._asdict() for metric, value in row.scores.items()},
        "gain": None if row.gain is None else row.gain._asdict(),
    }


def _cells(table: Sequence[Row], n_candidates: int) -> tuple[list[str], list[list[str]]]:
    """Header and lines of text of the whole table."""
    header = [
        "method", *(m.upper() for m in METRICS), "Δ NDCG@10", "p", "prompts", "calls", "tokens",
        "seconds", "valid", "paper NDCG@1/5/10",
    ]  # fmt: skip
    lines = []
    for row in table:
        cells = [row.name, *(_with_interval(value) for value in row.scores.values())]
        cells += ["", ""] if row.gain is None else [_signed(row.gain), _p_value(row.p_value)]
        cells += _costs(row)
        cells.append("" if row.published is None else _figures_of_paper(row.published))
        lines.append(cells)
    middle = [_short(chance(m, n_candidates)) for m in METRICS]
    lines.append([CHANCE, *middle, *[""] * (len(header) - 1 - len(middle))])
    return header, lines


def _rich_tables(
    table: Sequence[Row], title: str, n_candidates: int, reference: str
) -> list[Table]:
    """What it is worth and what it cost: two tables that fit a terminal of 80 columns."""
    first = ("ndcg@1", "ndcg@5", "ndcg@10")
    second = ("mrr@5", "mrr@10", "hr@5")
    scores = score_table(
        f"{title}; N@10 with 95 % interval, Δ to {reference}",
        ("method", *map(abbreviated, first), "Δ N@10", "p", "paper N@10"),
    )
    costs = score_table(
        "The other metrics, and what it cost",
        ("method", *map(abbreviated, second), "prompts", "calls", "tokens", "s", "valid"),
    )
    for row in table:
        value = {metric: _short(each.mean) for metric, each in row.scores.items()}
        value["ndcg@10"] = _with_interval(row.scores["ndcg@10"]).replace("[", "\\[")
        scores.add_row(
            row.name,
            *(value[metric] for metric in first),
            "" if row.gain is None else f"{row.gain.mean:+.3f}",
            _p_value(row.p_value),
            "" if row.published is None else _short(row.published[2]),
        )
        costs.add_row(row.name, *(value[metric] for metric in second), *_costs(row))
    for each, metrics in ((scores, first), (costs, second)):
        each.add_row(CHANCE, *(_short(chance(metric, n_candidates)) for metric in metrics))
    return [scores, costs]


def _costs(row: Row) -> list[str]:
    seconds = f"{row.seconds:,.0f}"
    if row.cost is None or row.valid is None:
        return ["", "", "", seconds, ""]
    tokens = row.cost.prompt_tokens + row.cost.reply_tokens
    return [
        f"{row.cost.prompts:,}", f"{row.cost.calls:,}", f"{tokens:,}", seconds, f"{row.valid:.0%}",
    ]  # fmt: skip


def _short(number: float) -> str:
    return f"{number:.3f}".replace("0.", ".", 1) if 0 <= number < 1 else f"{number:.3f}"


def _p_value(value: float | None) -> str:
    if value is None:
        return ""
    return "<.001" if value < 0.001 else _short(value)


def _with_interval(value: Interval) -> str:
    return f"{_short(value.mean)} [{_short(value.low)} {_short(value.high)}]"


def _signed(value: Interval) -> str:
    return f"{value.mean:+.3f} [{value.low:+.3f} {value.high:+.3f}]"


def _figures_of_paper(figures: Figures) -> str:
    return " / ".join(f"{value:.2f}".lstrip("0") for value in figures)


def _notes(comparison: Comparison, ranks: Mapping[str, Tensor], n_candidates: int) -> list[str]:
    """What has to be known to read the table."""
    controls = ", ".join(
        f"{name} {float(METRICS['ndcg@10'](each).mean()):.3f}"
        for name, each in comparison.control_ranks.items()
    )
    notes = [
        f"Controls (chance {chance('ndcg@10', n_candidates):.3f}): {controls}.",
        "Prompts are what a method needed, to decide and for the test users; calls, tokens and"
        " seconds what it cost this time: what another method or run had asked was in the cache.",
        "p: signs of the users' differences exchanged at random, two-sided, not corrected for the"
        " number of methods.",
    ]
    notes += [
        _what_is_personal(result.method, ranks[result.method.name])
        for result in comparison.results
        if isinstance(result.method, ExchangedPrompts)
    ]
    if cost := sum(result.cost.cost for result in comparison.results):
        notes.append(f"Cost by the prices given: {cost:.2f}.")
    if any(result.peeks for result in comparison.results):
        notes.append("An oracle chooses by the test target itself: no method, a bound for one.")
    missing = {
        result.method.name: sum(ranking.failed for ranking in result.rankings)
        for result in comparison.results
    }
    notes += [
        f"{name}: {n} users got no answer and are left out; run again, what was answered is kept."
        for name, n in missing.items()
        if n
    ]
    notes += [f"Left out: {name}: {why}." for name, why in comparison.not_run.items()]
    if comparison.not_reached:
        notes.append(f"Stopped before these had ranked: {', '.join(comparison.not_reached)}.")
    return notes


def _what_is_personal(method: ExchangedPrompts, ranks: Tensor) -> str:
    step = method.policy.played[-1]
    with final_scoring():
        own = METRICS["ndcg@10"](target_ranks(step.rankings, step.episodes))
    exchanged = METRICS["ndcg@10"](ranks)
    policy, gain = method.policy.name, _signed(paired_difference(own, exchanged))
    return (
        f"{method.name}: every user has the last prompt of another, drawn once;"
        f" {method.n_exchanged} of {len(own)} got one unlike their own. {policy} less this:"
        f" {gain}, p {_p_value(paired_p_value(own, exchanged))}; what is above 0 beyond chance is"
        " personal."
    )


def _figures(
    comparison: Comparison, ranks: Mapping[str, Tensor], table: Sequence[Row], n_candidates: int
) -> dict[str, Figure]:
    """Charts by file name."""
    scores: dict[str, Mapping[str, Interval]] = {row.name: row.scores for row in table}
    scores[CHANCE] = chance_row(n_candidates)
    figures = {"comparison": charts.methods(scores)}
    policies = [r.method for r in comparison.results if isinstance(r.method, Policy)]
    by_position = {
        name: METRICS["ndcg@10"](values)
        for name, values in (*comparison.control_ranks.items(), *ranks.items())
        if name in {"copies_the_list", comparison.reference, *(each.name for each in policies[:1])}
    }
    figures["positions"] = charts.by_position(
        by_position, comparison.displayed_positions(), n_candidates
    )
    if not policies:
        return figures
    rounds: dict[str, Sequence[Interval]] = {}
    for policy in policies:
        with final_scoring():
            reached = [target_ranks(step.rankings, comparison.users) for step in policy.played]
        rounds[policy.name] = [mean_interval(METRICS["ndcg@10"](each)) for each in reached]
    figures["rounds"] = charts.by_round(rounds, n_candidates)
    first = policies[0]
    last = first.played[-1]
    shown = [prompt.n_history for prompt in last.prompts]
    figures["users_by_option"] = charts.user_distribution(
        last.actions, shown, first.module.patterns
    )
    return figures


def _data_uri(figure: Figure) -> str:
    stream = BytesIO()
    figure.savefig(stream, format="svg", bbox_inches="tight")
    return f"data:image/svg+xml;base64,{base64.b64encode(stream.getvalue()).decode()}"


PAGE = Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title><style>
body { font-family: system-ui, sans-serif; margin: 2rem; color: #222 }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #ddd }
td { white-space: nowrap }
th:first-child, td:first-child { text-align: left }
tr:hover td { background: #f4f7fb }
img { max-width: 100%; display: block; margin: 2rem 0 }
</style></head><body><h1>{{ title }}</h1>
<table><thead><tr>{% for name in header %}<th>{{ name }}</th>{% endfor %}</tr></thead><tbody>
{% for line in cells %}<tr>{% for cell in line %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table>
<ul>{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul>
{% for name, source in pictures.items() %}<img alt="{{ name }}" src="{{ source }}">
{% endfor %}</body></html>
""")
