"""Charts.

``python -m rpp.charts logs/ml-100k/version_0 training.png`` draws a training run from its
TensorBoard files.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import polars as pl
import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from rpp.metrics import CHANCE, Interval, chance, mean_interval
from rpp.prompts.patterns import Patterns
from rpp.types import InputError

DASHED: dict[str, Any] = {"color": "grey", "linestyle": "--"}
"""Style of the line of chance."""

BESIDE: dict[str, Any] = {"fontsize": "small", "bbox_to_anchor": (1.02, 1), "loc": "upper left"}
"""A legend to the right of the axes, for many lines."""

ABOVE: dict[str, Any] = {
    "fontsize": "small",
    "bbox_to_anchor": (0, 1),
    "loc": "lower left",
    "ncols": 2,
}
"""A legend above the axes, for few."""

NARROW = (4.8, 3.3)
"""Size of a chart that can be read on a phone, in inches."""


def user_distribution(
    actions: Tensor, shown: Sequence[int], patterns: Patterns, n_candidates: int = 10
) -> Figure:
    """Share of users at each option of each pattern (paper, Figures 11-14).

    Args:
        actions: Final actions, ``(B, P)``.
        shown: Final history length of each user.
        patterns: The options.
        n_candidates: ``M``.
    """
    of_pattern: dict[str, dict[int, float]] = {}
    for k, name in enumerate(patterns.names):
        chosen = torch.tensor(shown) if name == "history" else actions[:, k]
        options, counts = chosen.unique(return_counts=True)
        shares = (100 * counts / len(chosen)).tolist()
        of_pattern[name] = dict(zip(options.tolist(), shares, strict=True))
    n_bars = [len(shares) for shares in of_pattern.values()]
    figure = Figure(figsize=(8, 0.6 * len(n_bars) + 0.35 * sum(n_bars)), layout="constrained")
    axes = figure.subplots(len(n_bars), squeeze=False, sharex=True, height_ratios=n_bars)[:, 0]
    for axis, (name, users) in zip(axes, of_pattern.items(), strict=True):
        words = [
            f"{option} items" if name == "history" else patterns.label(name, option, n_candidates)
            for option in users
        ]
        bars = axis.barh(range(len(users)), users.values())
        axis.bar_label(bars, fmt="{:.0f} %", padding=3)
        axis.set_yticks(range(len(users)), [fill(each, 50) for each in words], fontsize="small")
        axis.invert_yaxis()
        axis.set_title(f"{name}: users by option", loc="left", fontsize="medium")
    axes[-1].set(xlim=(0, 110), xlabel="% of the users")
    return figure


def methods(table: Mapping[str, Mapping[str, Interval]]) -> Figure:
    """NDCG@10 of every method with its interval, chance as a line."""
    figure = Figure(figsize=(7, 0.8 + 0.35 * len(table)), layout="constrained")
    axis = figure.subplots()
    names = [name for name in table if name != CHANCE]
    for y, name in enumerate(reversed(names)):
        value = table[name]["ndcg@10"]
        axis.errorbar(
            value.mean, y, xerr=[[value.mean - value.low], [value.high - value.mean]], fmt="o",
            color="C0", capsize=3,
        )  # fmt: skip
    axis.axvline(table[CHANCE]["ndcg@10"].mean, label=CHANCE, **DASHED)
    axis.set_yticks(range(len(names)), list(reversed(names)))
    axis.set_xlabel("NDCG@10 of test users, 95 % bootstrap interval")
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1))  # above, where it hides no interval
    return figure


def by_step(steps: Mapping[str, Sequence[Interval]], n_candidates: int = 10) -> Figure:
    """NDCG@10 after every step of an episode, one line per policy.

    Args:
        steps: Scores of the test users by policy, one per step.
        n_candidates: ``M``, for the score of chance.
    """
    figure = Figure(figsize=NARROW, layout="constrained")
    axis: Any = figure.subplots()
    for place, (name, values) in enumerate(steps.items()):
        # a small offset, so that the intervals of different policies do not overlap
        shift = 0.04 * (place - (len(steps) - 1) / 2)
        _with_bars(axis, [step + shift for step in range(1, len(values) + 1)], values, name)
    axis.axhline(chance("ndcg@10", n_candidates), label=CHANCE, **DASHED)
    axis.set(xlabel="step", ylabel="NDCG@10, 95 % interval")
    axis.yaxis.get_major_locator().set_params(nbins=6)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(**ABOVE)
    return figure


def by_value(
    scores: Mapping[str, Mapping[float, Interval]], chances: Mapping[float, float], label: str
) -> Figure:
    """NDCG@10 against a setting, one line per method (paper, Figures 4, 5, 6b).

    Args:
        scores: Scores of the test users by method and value of the setting.
        chances: Score of chance at each value.
        label: Name of the setting.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis: Any = figure.subplots()
    apart = 0.01 * (max(chances) - min(chances))
    for place, (name, by) in enumerate(scores.items()):
        shift = apart * (place - (len(scores) - 1) / 2)
        _with_bars(axis, [value + shift for value in by], list(by.values()), name)
    axis.plot(list(chances), list(chances.values()), marker=".", label=CHANCE, **DASHED)
    axis.set_xticks(list(chances), [f"{value:g}" for value in chances])
    axis.set(xlabel=label, ylabel="NDCG@10 of test users, 95 % interval")
    axis.legend(**BESIDE)
    return figure


def by_position(scores: Mapping[str, Tensor], positions: Tensor, n_candidates: int = 10) -> Figure:
    """NDCG@10 by the displayed position of the target, one line per method.

    Args:
        scores: NDCG@10 of every user by method, ``(B,)``.
        positions: Displayed position of each target, from 1, ``(B,)``.
        n_candidates: ``M``.
    """
    figure = Figure(figsize=NARROW, layout="constrained")
    axis = figure.subplots()
    for place, (name, values) in enumerate(scores.items()):
        occupied = [k for k in range(1, n_candidates + 1) if bool((positions == k).any())]
        means = [mean_interval(values[positions == k]) for k in occupied]
        _with_bars(axis, [k + 0.1 * place for k in occupied], means, name)
    axis.axhline(chance("ndcg@10", n_candidates), label=CHANCE, **DASHED)
    axis.set(
        xlabel="displayed position of the target", ylabel="NDCG@10, 95 % interval", ylim=(0, 1)
    )
    axis.legend(**ABOVE)
    return figure


def rewards(log: pl.DataFrame, n_candidates: int = 10) -> Figure:
    """Mean reward of every epoch against the number of rewards, with intervals over users.

    Within an epoch the log is in no order of time.

    Args:
        log: Rewards, as :func:`rpp.rewards.read_rewards` gives them, without failed calls.
        n_candidates: ``M``, for the score of chance.
    """
    figure = Figure(figsize=NARROW, layout="constrained")
    axis: Any = figure.subplots()
    epochs = log.partition_by("epoch", maintain_order=True)
    sizes = torch.tensor([epoch.height for epoch in epochs])
    by_user = [epoch.group_by("user").agg(pl.col("reward").mean())["reward"] for epoch in epochs]
    means = [mean_interval(values.to_numpy()) for values in by_user]
    _with_bars(axis, sizes.cumsum(0).tolist(), means, "training users")
    axis.axhline(chance("ndcg@10", n_candidates), label=CHANCE, **DASHED)
    axis.set(xlabel="rewards so far", ylabel="reward of the epoch", xlim=(0, None))
    axis.legend(**ABOVE)
    return figure


def _with_bars(axis: Any, places: Sequence[float], values: Sequence[Interval], label: str) -> None:
    heights = [value.mean for value in values]
    below = [value.mean - value.low for value in values]
    above = [value.high - value.mean for value in values]
    axis.errorbar(places, heights, yerr=[below, above], marker="o", capsize=2, label=label)


def training(run: Path, n_candidates: int = 10) -> Figure:
    """A training run: reward by epoch and step, chance; entropies, or what rewards vary by.

    Args:
        run: Folder of one run's TensorBoard files, such as ``logs/ml-100k/version_0``.
        n_candidates: ``M``, which decides what chance is.

    Raises:
        InputError: If the folder holds no training run.
    """
    events = EventAccumulator(str(run)).Reload()
    tags = events.Tags()["scalars"]
    if "train/reward" not in tags:
        raise InputError(f"{run} holds no TensorBoard files of a training run")

    def values(tag: str) -> list[float]:
        return [event.value for event in events.Scalars(tag)] if tag in tags else []

    figure = Figure(figsize=(13, 3.4), layout="constrained")
    by_epoch, by_step, entropy = figure.subplots(1, 3)
    n_epochs = len(values("train/reward"))
    for label, tag in (("training users", "train/reward"), ("validation users", "val/ndcg@10")):
        every = n_epochs / max(len(values(tag)), 1)  # epochs between two points
        epochs = [every * (k + 1) for k in range(len(values(tag)))]
        by_epoch.plot(epochs, values(tag), marker="o", label=label)
    for score in values("val/best_static_reward"):
        by_epoch.axhline(score, color="C1", linestyle=":", label="validation, best static prompt")
    by_epoch.set(title="reward by epoch", xlabel="epoch", ylabel="NDCG@10")
    for label, group in (("training", "train_reward_by_step"), ("validation", "val_ndcg_by_step")):
        steps = sorted(tag for tag in tags if tag.startswith(f"{group}/"))
        for epoch, style in ((0, ":"), (-1, "-")):
            when = "first epoch" if epoch == 0 else "last epoch"
            by_step.plot(
                range(1, len(steps) + 1),
                [values(tag)[epoch] for tag in steps],
                style,
                marker="o",
                color="C0" if label == "training" else "C1",
                label=f"{label}, {when}",
            )
    by_step.set(title="reward by step of an episode", xlabel="step", ylabel="NDCG@10")
    n_steps = sum(tag.startswith("train_reward_by_step/") for tag in tags)
    for axis, n in ((by_epoch, n_epochs), (by_step, n_steps)):
        axis.axhline(chance("ndcg@10", n_candidates), label=CHANCE, **DASHED)
        axis.set_xlim(0.5, max(n, 1) + 0.5)
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        low, high = axis.get_ylim()
        axis.set_ylim(min(low, 0.35), max(high, 0.75))  # fixed range: no zoom into noise
        axis.legend(fontsize="small")
    if any(tag.startswith("reward_sd/") for tag in tags):
        _deviations(entropy, {tag: values(tag)[-1] for tag in tags})
    else:
        _entropies(entropy, {tag: values(tag) for tag in tags})
    for axis in (by_epoch, by_step):
        axis.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _entropies(axis: Any, values: Mapping[str, Sequence[float]]) -> None:
    """Entropy of each agent's policy, by epoch."""
    for name in sorted(t.removeprefix("entropy/") for t in values if t.startswith("entropy/")):
        heights = values[f"entropy/{name}"]
        axis.plot(range(1, len(heights) + 1), heights, marker="o", label=name)
    axis.set(title="entropy of each agent's policy", xlabel="epoch", ylabel="nats", ylim=(0, None))
    axis.xaxis.get_major_locator().set_params(integer=True)
    if axis.lines:
        axis.legend(fontsize="small")


def _deviations(axis: Any, values: Mapping[str, float]) -> None:
    """What the reward model says rewards vary by."""
    found = {
        t.removeprefix("reward_sd/"): v for t, v in values.items() if t.startswith("reward_sd/")
    }
    names = [name.replace("_", ", ") for name in found]
    axis.barh(names, list(found.values()))
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize="small")
    axis.locator_params(axis="x", nbins=5)
    axis.set(title="reward model: what rewards vary by", xlabel="standard deviation of NDCG@10")


def main() -> None:
    """Draw one run."""
    parser = argparse.ArgumentParser(prog="python -m rpp.charts", description=training.__doc__)
    parser.add_argument("run", type=Path, help="a run's folder, such as logs/ml-100k/version_0")
    parser.add_argument("picture", type=Path, help="the file to write, .png or .pdf")
    parser.add_argument("--n-candidates", type=int, default=10)
    given = parser.parse_args()
    training(given.run, given.n_candidates).savefig(given.picture, dpi=110)


if __name__ == "__main__":
    main()
