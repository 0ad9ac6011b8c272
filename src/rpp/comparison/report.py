"""The results table of a comparison: what its rows, notes and charts are."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor

from rpp import charts
from rpp.callbacks.report import (
    chosen_options,
    facts_of_cost,
    facts_of_data,
    facts_of_ranker,
    shown,
)
from rpp.comparison.base import PromptMethod
from rpp.comparison.chance import CHECKED
from rpp.comparison.comparison import Comparison, Result
from rpp.comparison.published import PAPER, PUBLISHED
from rpp.evaluation import asked_users
from rpp.metrics import CHANCE, METRICS, Interval, chance, chance_row, mean_interval
from rpp.results.publish import Results, publish
from rpp.results.report import Report
from rpp.results.rows import Row, make_row
from rpp.results.users import examples
from rpp.types import InputError, TargetAccessError, final_scoring

ORACLE = " (oracle)"
"""Stands behind the name of a method that looks at the test targets."""

UNFINISHED = "unfinished"
"""Subfolder of the table of a run that was stopped."""


class ComparisonReport(Callback):
    """Prints the table and writes it with all that explains it.

    Args:
        folder: Where ``report.html``, ``comparison.{csv,json,md}`` and the charts go; those of a
            run that was stopped go to ``unfinished`` in it.
    """

    def __init__(self, folder: str = "results/comparison") -> None:
        self.folder = Path(folder)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Report the methods that were through before a budget, the user or a fault ended the run.

        What is whole of an earlier run stays. There is no report where a control has skill or a
        method has looked at a test target.
        """
        unsound = isinstance(exception, InputError | TargetAccessError)
        if trainer.testing and not unsound:
            self._report(pl_module, self.folder / UNFINISHED)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print and write."""
        self._report(pl_module, self.folder)

    def _report(self, comparison: LightningModule, folder: Path) -> None:
        if not isinstance(comparison, Comparison) or not comparison.results:
            return
        found = results(comparison)
        publish(found, folder, "comparison", lambda: report_of(comparison, found))
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)  # the whole takes a part's place


def results(comparison: Comparison) -> Results:
    """The table of what has been run."""
    data = comparison.data.summary
    name = data["settings"]["name"]
    n_users, n_candidates = len(comparison.users), len(comparison.users[0].candidates)
    ranks = comparison.target_ranks()
    rows = make_rows(comparison, ranks, name)
    return Results(
        title=f"{name}, {n_users} test users, {n_candidates} candidates",
        rows=rows,
        reference=comparison.reference,
        n_candidates=n_candidates,
        notes=[*_notes(comparison, ranks), *([PAPER] if any(r.published for r in rows) else [])],
        figures=_figures(comparison, ranks, rows),
        record={
            "data": data,
            "controls": {
                name: {metric: float(METRICS[metric](ranks).mean()) for metric in CHECKED}
                for name, ranks in comparison.control_ranks.items()
            },
            "not_run": comparison.not_run,
            "not_reached": comparison.not_reached,
            "environment": comparison.task.ranker.settings,
            "seed": comparison.seed,
        },
    )


def make_rows(comparison: Comparison, ranks: Mapping[str, Tensor], data_name: str) -> list[Row]:
    """Rows of what has been run.

    Args:
        comparison: After its test.
        ranks: Rank of every user's target by method, ``(B,)`` each.
        data_name: Whose published figures to set beside.
    """
    reference = ranks.get(comparison.reference)
    # the paper's users had ten candidates
    published = PUBLISHED.get(data_name, {}) if len(comparison.users[0].candidates) == 10 else {}
    return [
        make_row(
            result.method.name + ORACLE * result.is_oracle,
            ranks[result.method.name],
            None if result.method.name == comparison.reference else reference,
            expense=result.expense,
            valid=result.valid,
            published=published.get(result.method.name),
        )
        for result in comparison.results
    ]


def _notes(comparison: Comparison, ranks: Mapping[str, Tensor]) -> list[str]:
    """What has to be known to read the table."""
    controls = ", ".join(
        f"{name} {float(METRICS['ndcg@10'](each).mean()):.3f}"
        for name, each in comparison.control_ranks.items()
    )
    n_candidates = len(comparison.users[0].candidates)
    notes = [
        f"Controls (chance {chance('ndcg@10', n_candidates):.3f}): {controls}.",
        "Prompts are what a method needed, to decide and for the test users; calls, tokens and"
        " seconds what it used up this time: what another method or run had asked was cached.",
        "p: paired sign-flip permutation test, two-sided, not corrected for the number of methods.",
    ]
    for result in comparison.results:
        notes += result.notes(ranks[result.method.name])
    if cost := sum(result.expense.cost for result in comparison.results):
        notes.append(f"Cost by the prices given: {cost:.2f}.")
    if any(result.is_oracle for result in comparison.results):
        notes.append("An oracle chooses by the test target itself: no method, a bound for one.")
    for result in comparison.results:
        if n := sum(ranking.failed for ranking in result.rankings):
            notes.append(
                f"{result.method.name}: {n} users got no answer and are left out; run again, what"
                " was answered is kept."
            )
    notes += [f"Left out: {name}: {why}." for name, why in comparison.not_run.items()]
    if comparison.not_reached:
        notes.append(f"Stopped before these had ranked: {', '.join(comparison.not_reached)}.")
    return notes


def _figures(
    comparison: Comparison, ranks: Mapping[str, Tensor], rows: list[Row]
) -> dict[str, Figure]:
    """Charts by file name."""
    n_candidates = len(comparison.users[0].candidates)
    scores: dict[str, Mapping[str, Interval]] = {row.name: row.scores for row in rows}
    scores[CHANCE] = chance_row(n_candidates)
    players = _players(comparison)
    told_apart = {"copies_the_list", comparison.reference, *(each.name for each in players[:1])}
    by_position = {
        name: METRICS["ndcg@10"](values)
        for name, values in (*comparison.control_ranks.items(), *ranks.items())
        if name in told_apart
    }
    positions = comparison.displayed_positions()
    figures = {
        "comparison": charts.methods(scores),
        "positions": charts.by_position(by_position, positions, n_candidates),
    }
    if not players:
        return figures
    by_step: dict[str, list[Interval]] = {}
    for method in players:
        with final_scoring():
            reached = [step.target_ranks() for step in method.played]
        by_step[method.name] = [mean_interval(METRICS["ndcg@10"](r)) for r in reached]
    figures["steps"] = charts.by_step(by_step, n_candidates)
    last, patterns = players[0].played[-1], players[0].played_patterns or comparison.patterns
    n_shown = [prompt.n_history for prompt in last.prompts]
    figures["users_by_option"] = charts.user_distribution(
        last.actions, n_shown, patterns, n_candidates
    )
    return figures


def _players(comparison: Comparison) -> list[PromptMethod]:
    """Methods that play episodes."""
    methods = [result.method for result in comparison.results]
    return [each for each in methods if isinstance(each, PromptMethod) and each.played]


def report_of(comparison: Comparison, found: Results) -> Report:
    """What the report tells besides the table; options and users are those of the first policy.

    Args:
        comparison: After its test.
        found: The table.
    """
    facts = {
        **facts_of_data(comparison.data, len(comparison.users)),
        **facts_of_ranker(comparison.task.ranker),
        "methods": f"{len(comparison.results)}, compared with {comparison.reference}",
        "seed": str(comparison.seed),
        **facts_of_cost(comparison.task.ranker.counters),
    }
    players = _players(comparison)
    results = {result.method.name: result for result in comparison.results}
    reference = results.get(comparison.reference)
    report = Report(len(comparison.users), facts, charts=shown(found.figures))
    if not players or reference is None or players[0].name == comparison.reference:
        return report
    subject = next(row for row in found.rows if row.name == players[0].name)
    return replace(report, subject=subject, **_of_users(comparison, players[0], reference))


def _of_users(comparison: Comparison, policy: PromptMethod, reference: Result) -> dict[str, Any]:
    """Chosen options and examples."""
    last, patterns = policy.played[-1], policy.played_patterns or comparison.patterns
    n_users, n_candidates = len(comparison.users), len(comparison.users[0].candidates)
    asked = asked_users(last, reference.rankings, [""] * n_users, [{}] * n_users)
    groups, shares = chosen_options(asked, comparison.data, patterns, n_candidates)
    return {
        "groups": groups,
        "shares": shares,
        "examples": examples(asked, comparison.users, patterns, comparison.seed),
    }
