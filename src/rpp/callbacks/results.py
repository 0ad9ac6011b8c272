"""The results table of a learner's test."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor

from rpp import charts
from rpp.callbacks.environment import all_counters, priced
from rpp.callbacks.report import report_of, seeds
from rpp.evaluation import BEST_STATIC, PERMUTED, PERMUTED_NOTE, RANDOM_POLICY
from rpp.learners.base import PromptLearner
from rpp.metrics import (
    CHANCE,
    METRICS,
    Interval,
    chance_row,
    mean_interval,
    paired_difference,
    paired_p_value,
)
from rpp.prompts.refine import Refiner
from rpp.ranker import Counters
from rpp.results.publish import Results, publish
from rpp.results.render import p_value, signed
from rpp.results.rows import Row, make_row
from rpp.terminal import print_result
from rpp.types import LanguageModelStop


class ResultsTable(Callback):
    """Prints the test table and writes it with notes, charts and a report.

    Args:
        folder: Folder of ``report.html``, ``results.{csv,json,md}`` and the charts.
    """

    def __init__(self, folder: str = "results") -> None:
        self.folder = Path(folder)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the result of the fit and the next command."""
        checkpoint = trainer.checkpoint_callback
        best = getattr(checkpoint, "best_model_path", "")
        score = getattr(checkpoint, "best_model_score", None)
        if best and score is not None and trainer.is_global_zero:
            print_result(
                f"Best validation NDCG@10 {float(score):.3f} after {trainer.current_epoch} epochs:"
                f" {best}\nNext: the same command with [bold]test[/] in place of fit; what prompts"
                " can win here at all tells [bold]python -m rpp.audit[/] with the same --config"
            )

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Report the users tested before a budget ended the run."""
        if isinstance(exception, LanguageModelStop) and trainer.testing:
            self.on_test_end(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print and write the table."""
        if not isinstance(pl_module, PromptLearner) or not pl_module.test_results.n_users:
            return
        counters = all_counters(pl_module.environment.ranker)
        if trainer.is_global_zero:
            results = _results(pl_module, counters)
            audited = audit_notes(self.folder, pl_module)
            results = replace(results, notes=[*results.notes, *audited[:1]])
            publish(
                results,
                self.folder,
                "results",
                lambda: report_of(
                    pl_module, trainer, counters, results.rows[0], results.figures, audited
                ),
            )


def audit_notes(folder: Path, learner: PromptLearner[Any]) -> list[str]:
    """How much of what prompts change lasts, if an audit of these patterns and model has told.

    Its own sentences follow the first one.
    """
    path = folder / "audit.json"
    if not path.is_file():
        return []
    try:
        audit = json.loads(path.read_text(encoding="utf-8"))
        asked = audit["patterns_fingerprint"], _asked_of(audit["environment"])
        share = Interval(**audit["lasting_share"])
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        # no reason to lose the table
        return [f"{path} is damaged: run the audit again, or remove it."]
    if asked != (learner.patterns.fingerprint, _asked_of(learner.environment_metadata)):
        return []
    return [
        f"Audit of {audit['date'][:10]}: of what prompts change for one user on one target,"
        f" {share.mean:.0%} [{share.low:.0%}, {share.high:.0%}] of the variance lasts to other"
        f" targets; a personal prompt gains at most {audit['personal']['mean']:+.3f} over the best"
        " common one.",
        *map(str, audit.get("notes", ())),
    ]


def _asked_of(environment: Mapping[str, str]) -> dict[str, str]:
    """What answered; recommenders of an audit know fewer interactions, for it has more targets."""
    return {name: each for name, each in environment.items() if name != "evidence"}


def _results(learner: PromptLearner[Any], counters: Counters) -> Results:
    found = learner.test_results
    reference = found.ranks[BEST_STATIC]
    own = [name for name in found.ranks if name.startswith(learner.title)]
    rows = [
        make_row(name, found.ranks[name], None if name == BEST_STATIC else reference)
        for name in [*own, RANDOM_POLICY, BEST_STATIC]
    ]
    gains = _gains(learner.title, found.ranks)
    n_steps = int(learner.inference_steps)
    n_candidates = learner.n_candidates
    name = learner.data_summary["settings"]["name"]
    return Results(
        title=f"{name}, {found.n_users} test users, {n_candidates} candidates, {n_steps}"
        f" {'step' if n_steps == 1 else 'steps'}",
        rows=rows,
        reference=BEST_STATIC,
        n_candidates=n_candidates,
        notes=_notes(learner, counters, gains),
        figures=_figures(learner, rows),
        record=_record(learner, counters, gains),
    )


def _gains(title: str, ranks: Mapping[str, Tensor]) -> dict[str, tuple[Interval, float]]:
    """Paired differences of the learner to its controls, with p-values."""
    ours = METRICS["ndcg@10"](ranks[title])
    controls = [name for name in (f"{title}{PERMUTED}", RANDOM_POLICY) if name in ranks]
    theirs = {name: METRICS["ndcg@10"](ranks[name]) for name in controls}
    return {
        name: (paired_difference(ours, each), paired_p_value(ours, each))
        for name, each in theirs.items()
    }


def _notes(
    learner: PromptLearner[Any], counters: Counters, gains: Mapping[str, tuple[Interval, float]]
) -> list[str]:
    """Notes below the table."""
    title, found = learner.title, learner.test_results
    notes = [
        f"NDCG@10, {title} - {name}: {signed(gain)}, p {p_value(p)}."
        for name, (gain, p) in gains.items()
    ]
    if f"{title}{PERMUTED}" in found.ranks:
        notes.append(
            f"{title}{PERMUTED}: {PERMUTED_NOTE} {found.n_permuted} of {found.n_users} prompts"
            " differ from the user's own."
        )
    kinds = ("valid", "repaired", "unusable")
    n_answered = max(sum(found.replies[kind] for kind in kinds), 1)
    shares = ", ".join(f"{found.replies[kind] / n_answered:.1%} {kind}" for kind in kinds)
    notes += [
        f"Replies behind the row {title}: {shares}; {counters.failed} calls failed in all.",
        f"Cost: {counters.calls} calls, {counters.cache_hits} answered from the cache,"
        f" {counters.prompt_tokens} prompt and {counters.reply_tokens} reply tokens,"
        f" {counters.seconds:.0f} s{priced(counters.cost)}.",
    ]
    if counters.shortened_histories:
        notes.append(
            f"{counters.shortened_histories} prompts did not fit the model's context and showed"
            " fewer past items than chosen."
        )
    if missing := int(max(ranks.isnan().sum() for ranks in found.ranks.values())):
        notes.append(
            f"Up to {missing} test users got no answer and are left out of a row: run test again,"
            " what was answered is kept."
        )
    if learner.refiner is not None:
        counts = learner.refiner.counts
        notes.append(
            f"RPP+: {counts['refined']} sentences are sent refined, {counts['kept']} as they"
            " were; so in every row of the table."
        )
    return notes


def _figures(learner: PromptLearner[Any], rows: list[Row]) -> dict[str, Figure]:
    found = learner.test_results
    scores: dict[str, Mapping[str, Interval]] = {row.name: row.scores for row in rows}
    scores[CHANCE] = chance_row(learner.n_candidates)
    by_step = [mean_interval(METRICS["ndcg@10"](ranks)) for ranks in found.ranks_by_step]
    by_method = {
        name: METRICS["ndcg@10"](found.ranks[name]) for name in (learner.title, BEST_STATIC)
    }
    return {
        "methods": charts.methods(scores),
        "steps": charts.by_step({learner.title: by_step}, learner.n_candidates),
        "positions": charts.by_position(by_method, found.positions, learner.n_candidates),
    }


def _record(
    learner: PromptLearner[Any], counters: Counters, gains: Mapping[str, tuple[Interval, float]]
) -> dict[str, Any]:
    """Further content of the JSON file."""
    found = learner.test_results
    positions = torch.bincount(found.positions.long(), minlength=learner.n_candidates + 1)
    return {
        "inference_steps": int(learner.inference_steps),
        "n_users": found.n_users,
        "ndcg@10_gain_over": {
            name: gain._asdict() | {"p_value": p} for name, (gain, p) in gains.items()
        },
        "ndcg@10_by_step": [
            METRICS["ndcg@10"](ranks).nanmean().item() for ranks in found.ranks_by_step
        ],
        "unnamed_target_not_retrieved": {
            name: metric(found.named_ranks).nanmean().item() for name, metric in METRICS.items()
        },
        "permuted_prompts": found.n_permuted,
        "static_prompt": _static_prompt(learner),
        "target_position": positions[1:].tolist(),
        "replies": dict(found.replies),
        "counters": counters.as_dict(),
        "environment": learner.environment_metadata,
        "trained_in": learner.trained_in,
        "refinements": _refinements(learner.refiner),
        "seeds": seeds(learner),
        "provenance": learner.provenance,
    }


def _static_prompt(learner: PromptLearner[Any]) -> dict[str, int]:
    """The option of every pattern, counted from 1 as in the section ``manual`` of a file."""
    static, names = learner.static, learner.patterns.names
    numbers = {name: action + 1 for name, action in zip(names, static.actions, strict=True)}
    return numbers | {"history": static.length}


def _refinements(refiner: Refiner | None) -> list[dict[str, str]]:
    if refiner is None:
        return []
    return [asdict(each) | {"sent": each.sent} for each in refiner.refinements.values()]
