"""The results table as text: for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

from rich.table import Table

from rpp.metrics import CHANCE, METRICS, Interval, chance
from rpp.results.rows import Figures, Row
from rpp.terminal import abbreviated, score_table


def cells(rows: Sequence[Row], n_candidates: int) -> tuple[list[str], list[list[str]]]:
    """Header and lines of text of the whole table, without columns in which nothing stands."""
    header = [
        "method", *(m.upper() for m in METRICS), "Δ NDCG@10", "p", "prompts", "calls", "tokens",
        "seconds", "valid", "paper NDCG@1/5/10",
    ]  # fmt: skip
    lines = [
        [
            row.name,
            *(with_interval(value) for value in row.scores.values()),
            "" if row.gain is None else signed(row.gain),
            p_value(row.p_value),
            *_expenses(row),
            "" if row.published is None else _figures_of_paper(row.published),
        ]
        for row in rows
    ]
    middle = [short(chance(m, n_candidates)) for m in METRICS]
    lines.append([CHANCE, *middle, *[""] * (len(header) - 1 - len(middle))])
    return _without_empty_columns(header, lines)


def rich_tables(rows: Sequence[Row], title: str, n_candidates: int, reference: str) -> list[Table]:
    """What it is worth and what it cost: two tables that fit a terminal of 80 columns."""
    first = ("ndcg@1", "ndcg@5", "ndcg@10")
    second = ("mrr@5", "mrr@10", "hr@5")
    scores, costs = [], []
    for row in rows:
        value = {metric: short(each.mean) for metric, each in row.scores.items()}
        value["ndcg@10"] = with_interval(row.scores["ndcg@10"]).replace("[", "\\[")
        gain = "" if row.gain is None else f"{row.gain.mean:+.3f}"
        published = "" if row.published is None else short(row.published[2])
        middle = [value[metric] for metric in first]
        scores.append([row.name, *middle, gain, p_value(row.p_value), published])
        costs.append([row.name, *(value[metric] for metric in second), *_expenses(row)])
    for lines, metrics in ((scores, first), (costs, second)):
        by_chance = [short(chance(metric, n_candidates)) for metric in metrics]
        lines.append([CHANCE, *by_chance, *[""] * (len(lines[0]) - 1 - len(metrics))])
    return [
        _rich_table(
            f"{title}; N@10 with 95 % interval, Δ to {reference}",
            ["method", *map(abbreviated, first), "Δ N@10", "p", "paper N@10"],
            scores,
        ),
        _rich_table(
            "The other metrics, and what it cost",
            ["method", *map(abbreviated, second), "prompts", "calls", "tokens", "s", "valid"],
            costs,
        ),
    ]


def _rich_table(title: str, header: list[str], lines: list[list[str]]) -> Table:
    header, lines = _without_empty_columns(header, lines)
    table = score_table(title, header)
    for line in lines:
        table.add_row(*line)
    return table


def _without_empty_columns(
    header: list[str], lines: list[list[str]]
) -> tuple[list[str], list[list[str]]]:
    filled = [any(column) for column in zip(*lines, strict=True)]
    kept = [list(compress(line, filled)) for line in (header, *lines)]
    return kept[0], kept[1:]


def _expenses(row: Row) -> list[str]:
    expense = row.expense
    seconds = "" if expense is None else f"{expense.seconds:,.0f}"
    if expense is None or row.valid is None:
        return ["", "", "", seconds, ""]
    tokens = expense.prompt_tokens + expense.reply_tokens
    return [
        f"{expense.prompts:,}", f"{expense.calls:,}", f"{tokens:,}", seconds, f"{row.valid:.0%}",
    ]  # fmt: skip


def short(number: float) -> str:
    """A number with three digits, without the zero before the point."""
    return f"{number:.3f}".replace("0.", ".", 1) if 0 <= number < 1 else f"{number:.3f}"


def p_value(value: float | None) -> str:
    """A p-value in short; nothing where there is none."""
    if value is None:
        return ""
    return "<.001" if value < 0.001 else short(value)


def with_interval(value: Interval) -> str:
    """A mean and its interval in short."""
    return f"{short(value.mean)} [{short(value.low)} {short(value.high)}]"


def signed(value: Interval) -> str:
    """A difference and its interval."""
    return f"{value.mean:+.3f} [{value.low:+.3f} {value.high:+.3f}]"


def _figures_of_paper(figures: Figures) -> str:
    return " / ".join(f"{value:.2f}".lstrip("0") for value in figures)


def markdown(
    title: str, header: Sequence[str], lines: Sequence[Sequence[str]], notes: Sequence[str]
) -> str:
    """The whole table and its notes as Markdown."""
    rows = [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines)]
    return "\n".join([f"## {title}\n", *rows, "", *(f"- {note}" for note in notes)]) + "\n"
