"""What an audit writes and prints: a table, plain words, a chart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from rpp.audit.findings import COMMON_SHARE, PERSONAL_SHARE, Findings
from rpp.audit.module import Audit
from rpp.metrics import Interval
from rpp.prompts.patterns import Patterns
from rpp.results.render import markdown, signed, with_interval
from rpp.terminal import score_table

HEADER = ["sd of NDCG over", "all users", "one user, one target", "lasting in a user"]
"""Of whom a standard deviation is told."""

BRIEF = ["sd of NDCG over", "all users", "one target", "lasting"]
"""The same for a terminal of 80 columns."""


def publish(audit: Audit, folder: Path, notes: Sequence[str]) -> None:
    """Write ``audit.{json,md,png}`` and print.

    Args:
        audit: After its run.
        folder: Where to.
        notes: What else has to be known.

    Raises:
        InputError: If too few users were asked.
    """
    found = audit.findings()
    title = (
        f"Audit: {found.n_users} training users, {found.n_targets} targets each,"
        f" {found.n_prompts} prompts each, {found.n_rewards:,} rewards; 95 % intervals"
    )
    n_candidates = len(audit.users[0][0].candidates)
    words = [*in_words(found, best_prompt(found, audit.patterns, n_candidates)), *notes]
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "patterns_fingerprint": audit.patterns.fingerprint,
        "environment": audit.asked_of,
        **plain(found),
        "notes": words,
    }
    (folder / "audit.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    text = markdown(title, HEADER, lines(found), words)
    picture = "\n![Effects of options; standard deviations](audit.png)\n"
    (folder / "audit.md").write_text(text + picture, encoding="utf-8")
    figure = draw(found, audit.patterns, n_candidates)
    figure.savefig(folder / "audit.png", dpi=110, bbox_inches="tight")
    _print(title, found, [*words, f"Written to {folder}/audit.{{json,md,png}}"])


def _print(title: str, found: Findings, words: Sequence[str]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    table = score_table(title, BRIEF)
    for line in lines(found):
        table.add_row(*(cell.replace("[", "\\[") for cell in line))
    console.print(table)
    console.print("\n".join(words), markup=False)


def lines(found: Findings) -> list[list[str]]:
    """The table's lines."""
    by_pattern = [
        [f"{name}, options", *map(with_interval, (each.main, each.within, each.lasting))]
        for name, each in found.patterns.items()
    ]
    return [
        *by_pattern,
        ["prompts, the rest", "", with_interval(found.rest), ""],
        ["prompts, all", "", with_interval(found.within), with_interval(found.lasting)],
        ["users", with_interval(found.users), "", ""],
        ["targets of a user", with_interval(found.targets), "", ""],
    ]


def best_prompt(found: Findings, patterns: Patterns, n_candidates: int = 10) -> str:
    """The options with the largest main effects, in short; of lists of ``n_candidates``."""
    best = {name: _best(each.effects) for name, each in found.patterns.items()}
    return "; ".join(
        f"{name} {action + 1} ({patterns.label(name, action, n_candidates, 40)})"
        for name, action in best.items()
    )


def _best(effects: Sequence[Interval]) -> int:
    return max(range(len(effects)), key=lambda k: effects[k].mean)


def in_words(found: Findings, best: str) -> list[str]:
    """What it means.

    Args:
        found: The figures.
        best: The common prompt that looks best.
    """
    return [*_luck(found), *_common(found, best), *_personal(found)]


def _luck(found: Findings) -> list[str]:
    share = found.lasting_share
    return [
        f"For one user on one target, prompts differ by a standard deviation of"
        f" {found.within.mean:.3f}, beyond what they do for all. Of this variance {share.mean:.0%}"
        f" [{share.low:.0%}, {share.high:.0%}] lasts to other targets of the user; the rest is luck"
        " of one target, which no choice of a prompt can win."
    ]


def _common(found: Findings, best: str) -> list[str]:
    calls = found.calls.common
    text = f"The best common prompt gains about {signed(found.common)} over a random one"
    if not calls:
        return [f"{text}: this audit sees no difference between common prompts."]
    proof = "" if found.common.low > 0 else " That it gains anything is not shown yet."
    return [
        f"{text}; it looks like {best}.{proof} To find {COMMON_SHARE:.0%} of that takes about"
        f" {calls:,} calls spread like these (by the estimated variances; normal effects)."
    ]


def _personal(found: Findings) -> list[str]:
    shown = "Users differ lastingly" if found.lasting.low > 0 else "No lasting difference is shown"
    text = (
        f"{shown}: a prompt of each user's own gains at most {signed(found.personal)} over the best"
        " common one, if all that lasts were known of everybody (an upper bound)."
    )
    calls, fewest = found.calls.personal, found.calls.personal_at_best
    if fewest is None:
        return [text, "There is nothing to find for a personal prompt."]
    most = f"about {calls:,} calls" if calls else "more calls than can be told"
    return [
        f"{text} To find {PERSONAL_SHARE:.0%} of that from a user's own rewards takes {most} for"
        f" each user, on {found.n_prompts} prompts a target (about {fewest:,} if the upper end is"
        " true). Fewer do only if what lasts can be told from other things known of the user."
    ]


def plain(value: Any) -> Any:
    """Findings as JSON has them; an interval becomes a mapping."""
    if is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Interval):
        return value._asdict()
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, tuple) else value


def draw(found: Findings, patterns: Patterns, n_candidates: int = 10) -> Figure:
    """Effects of the options by pattern, then the standard deviations.

    Args:
        found: The figures.
        patterns: The options.
        n_candidates: ``M``.
    """
    n = len(found.patterns)
    figure = Figure(figsize=(3 * n + 4, 4.8), layout="constrained")
    *by_pattern, last = figure.subplots(1, n + 1, width_ratios=[3] * n + [4])
    farthest = max(abs(end) for each in found.patterns.values() for v in each.effects for end in v)
    reach = 1.1 * farthest or 1.0
    for axis, (name, each) in zip(by_pattern, found.patterns.items(), strict=True):
        labels = [
            f"{action + 1} {patterns.label(name, action, n_candidates, 32)}"
            for action in range(len(each.effects))
        ]
        _bars(axis, range(len(labels)), each.effects)
        axis.axhline(0, color="grey", linestyle="--")
        axis.set_xticks(range(len(labels)), labels, rotation=90, fontsize="small")
        axis.set(title=f"{name}: all users", ylim=(-reach, reach))
    by_pattern[0].set_ylabel("NDCG less the mean, 95 % interval")
    kinds = {"all users": "main", "one user and target": "within", "lasting in a user": "lasting"}
    for place, (label, kind) in enumerate(kinds.items()):
        values = [getattr(each, kind) for each in found.patterns.values()]
        _bars(last, [k + 0.2 * (place - 1) for k in range(n)], values, label)
    last.set_xticks(range(n), list(found.patterns), rotation=90, fontsize="small")
    last.set(title="options differ for", ylabel="standard deviation of NDCG", ylim=(0, None))
    last.legend(fontsize="small")
    return figure


def _bars(axis: Any, places: Sequence[float], values: Sequence[Interval], label: str = "") -> None:
    """Points with their intervals."""
    ends = [[value.mean - value.low, value.high - value.mean] for value in values]
    heights = [value.mean for value in values]
    axis.errorbar(places, heights, [*zip(*ends, strict=True)], fmt="o", capsize=2, label=label)
