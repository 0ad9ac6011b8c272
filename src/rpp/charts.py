"""Charts for people who would rather look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from rpp.metrics import Interval
from rpp.prompts.patterns import PATTERNS, Patterns


def user_distribution(actions: Tensor, shown: Sequence[int], patterns: Patterns) -> Figure:
    """Share of users at each option of each pattern (paper, Figures 11-14).

    Args:
        actions: Final actions, ``(B, P)``.
        shown: Interactions shown to each user at the end.
        patterns: The options.
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, len(PATTERNS))
    for k, (axis, name) in enumerate(zip(axes, PATTERNS, strict=True)):
        if name == "history":
            lengths, counts = torch.tensor(shown).unique(return_counts=True)
            labels = [f"{n} items" for n in lengths.tolist()]
        else:
            counts = torch.bincount(actions[:, k], minlength=patterns.n_actions[k])
            labels = [f"{name} {n + 1}" if c else "" for n, c in enumerate(counts.tolist())]
        axis.pie(
            counts.tolist(),
            labels=labels,
            autopct=lambda share: f"{share:.0f} %" if share >= 4 else "",
        )
        axis.set_title(f"{name}: users by option")
    return figure


def methods(table: Mapping[str, Mapping[str, Interval]]) -> Figure:
    """NDCG@10 of every method with its interval, chance as a line."""
    figure = Figure(figsize=(7, 0.5 + 0.5 * len(table)), layout="constrained")
    axis = figure.subplots()
    names = [name for name in table if name != "chance"]
    for y, name in enumerate(reversed(names)):
        value = table[name]["ndcg@10"]
        axis.errorbar(
            value.mean, y, xerr=[[value.mean - value.low], [value.high - value.mean]], fmt="o",
            color="C0", capsize=3,
        )  # fmt: skip
    axis.axvline(table["chance"]["ndcg@10"].mean, color="grey", linestyle="--", label="chance")
    axis.set_yticks(range(len(names)), list(reversed(names)))
    axis.set_xlabel("NDCG@10 of test users, 95 % bootstrap interval")
    axis.legend(loc="lower right")
    return figure
