"""What the report of a learner's test tells besides the results table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import polars as pl
from lightning import Trainer
from matplotlib.figure import Figure

from rpp import charts
from rpp.callbacks.environment import priced
from rpp.callbacks.reward_log import RewardLog
from rpp.data.datamodule import EpisodeDataModule
from rpp.learners.base import PromptLearner
from rpp.learners.checkpoint import environment_changes
from rpp.prompts.patterns import Patterns
from rpp.ranker import Counters, Ranker
from rpp.results.report import Chart, Report
from rpp.results.rows import Row
from rpp.results.shares import Group, OptionShares, option_shares, user_groups
from rpp.results.users import AskedUser, examples
from rpp.rewards import environment_fingerprint, read_rewards
from rpp.types import SPLITS, InputError

SHOWN = {
    "steps": (
        "NDCG@10 by step",
        "NDCG@10 after every step of an episode, with 95 % intervals over users.",
    ),
    "positions": (
        "NDCG@10 by position",
        "NDCG@10 by the place of the target in the list of candidates, with 95 % intervals. A"
        " ranker that reads the list from the top would fall from left to right.",
    ),
}
"""Title and caption of the charts that a report shows, by name."""


def report_of(
    learner: PromptLearner[Any],
    trainer: Trainer,
    counters: Counters,
    row: Row,
    figures: Mapping[str, Figure],
    audit: Sequence[str],
) -> Report:
    """What a learner's test has to tell.

    Args:
        learner: After its test.
        trainer: Its trainer.
        counters: What was spent.
        row: The learner's row of the table.
        figures: Charts by name.
        audit: What an audit has found.
    """
    found, data = learner.test_results, learner.data
    groups, shares = chosen_options(
        found.users, data, learner.patterns, learner.n_candidates, learner.static.actions
    )
    return Report(
        n_users=found.n_users,
        facts=_facts(learner, trainer, counters),
        settings={name: shorten(str(each), 300) for name, each in learner.arguments.items()},
        subject=row,
        charts=_charts(learner, trainer, figures),
        groups=groups,
        shares=shares,
        audit=audit,
        examples=examples(
            found.users, data.episodes("test"), learner.patterns, learner.policy_seed
        ),
    )


def chosen_options(
    users: Sequence[AskedUser],
    data: EpisodeDataModule,
    patterns: Patterns,
    n_candidates: int,
    static: Sequence[int] = (),
) -> tuple[list[Group], Mapping[str, list[OptionShares]]]:
    """Which options test users get, and the groups of users that are told apart.

    Args:
        users: What they were asked.
        data: The data set.
        patterns: The options.
        n_candidates: ``M``.
        static: Actions of the best static prompt.
    """
    of_user = {episode.user: episode for episode in data.episodes("test")}
    try:
        popularity = data.popularity
    except InputError:  # of data that are in no folder
        popularity = None
    groups = user_groups([of_user[each.user] for each in users], popularity)
    actions = np.array([each.actions for each in users])
    return groups, option_shares(actions, groups, patterns, n_candidates, static)


def facts_of_data(data: EpisodeDataModule, n_tested: int) -> dict[str, str]:
    """Data set, users and candidates.

    Args:
        data: The data set.
        n_tested: Test users in the table.
    """
    summary = data.summary
    settings = summary["settings"]
    counts = summary.get("counts", {}).get("prepared", {})
    sizes = ", ".join(f"{n:,} {name}" for name, n in counts.items())
    train, validation, test = (len(data.episodes(split)) for split in SPLITS)
    tested = f"{n_tested}" if n_tested == test else f"{n_tested} of {test}"
    drawn = {
        "uniform": ", drawn uniformly from the catalogue", "authors": ", the published lists",
    }  # fmt: skip
    return {
        "data set": f"{settings['name']}: {sizes}" if sizes else settings["name"],
        "users": f"{train} for training, {validation} for validation, {tested} in the test",
        "candidates": f"{settings['n_candidates']} for each user, the target among them"
        + drawn.get(settings.get("candidates"), ""),
    }


def facts_of_ranker(ranker: Ranker) -> dict[str, str]:
    """Language model and decoding."""
    llm = ranker.llm.model
    told = [llm.arguments.get(name) for name in ("model", "quantization", "adapter")]
    shown = "listed" if ranker.display.show_candidates else "not listed"
    return {
        "language model": ", ".join([*(str(each) for each in told if each), type(llm).__name__]),
        "decoding": f"{ranker.decoding}; candidates are {shown} in the prompt",
    }


def facts_of_cost(counters: Counters) -> dict[str, str]:
    """Calls and cost."""
    return {
        "calls": f"{counters.calls:,} to the language model, {counters.cache_hits:,} answered from"
        f" the cache, {counters.failed:,} failed",
        "cost": f"{counters.prompt_tokens:,} prompt and {counters.reply_tokens:,} reply tokens,"
        f" {counters.seconds:,.0f} s of the language model{priced(counters.cost)}",
    }


def _facts(learner: PromptLearner[Any], trainer: Trainer, counters: Counters) -> dict[str, str]:
    n_steps = int(learner.inference_steps)
    changes = environment_changes(learner.trained_in, learner.environment_metadata)
    moved = (
        {"trained in": f"another environment: {changes}"} if learner.trained_in and changes else {}
    )
    return {
        **facts_of_data(learner.data, learner.test_results.n_users),
        **facts_of_ranker(learner.environment.ranker),
        **moved,
        "learner": f"{learner.title} ({type(learner).__name__}); {n_steps}"
        f" {'step' if n_steps == 1 else 'steps'} for a test user",
        "patterns": f"{learner.patterns_file}: "
        + ", ".join(
            f"{n} of {name}"
            for name, n in zip(learner.patterns.names, learner.patterns.n_actions, strict=True)
        ),
        "checkpoint": _checkpoint(learner, trainer),
        "seeds": ", ".join(f"{name} {seed}" for name, seed in seeds(learner).items()),
        **facts_of_cost(counters),
    }


def seeds(learner: PromptLearner[Any]) -> dict[str, int]:
    """What a run is drawn from."""
    return {
        "data": learner.data_summary["settings"]["seed"],
        "policy": learner.policy_seed,
        "environment": learner.environment.ranker.seed,
    }


def _checkpoint(learner: PromptLearner[Any], trainer: Trainer) -> str:
    if trainer.ckpt_path is None:
        return "none: the weights of this process"
    return f"{trainer.ckpt_path}, after {learner.n_epochs_done} epochs"


def _charts(
    learner: PromptLearner[Any], trainer: Trainer, figures: Mapping[str, Figure]
) -> dict[str, Chart]:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    log = next((each.path for each in callbacks if isinstance(each, RewardLog)), None)
    found = {} if log is None else reward_chart(learner, log)
    has_steps = len(learner.test_results.ranks_by_step) > 1
    return found | shown({k: each for k, each in figures.items() if has_steps or k != "steps"})


def shown(figures: Mapping[str, Figure]) -> dict[str, Chart]:
    """The charts that a report shows, of those there are."""
    return {name: Chart(*words, figures[name]) for name, words in SHOWN.items() if name in figures}


def reward_chart(learner: PromptLearner[Any], path: Path) -> dict[str, Chart]:
    """The training reward as it came in; nothing if the log is not of this policy's training.

    Args:
        learner: The learner.
        path: The reward log.
    """
    try:
        log = read_rewards(path)
    except InputError:
        return {}
    log = log.filter(
        pl.col("reward").is_not_null(),
        pl.col("patterns") == learner.patterns.fingerprint,
        pl.col("environment")
        == environment_fingerprint(learner.trained_in or learner.environment_metadata),
    )
    if log.is_empty():
        return {}
    drawn = log["probability"].n_unique() == 1 and log["probability"].null_count() == 0
    caption = (
        f"NDCG of {log.height:,} training rewards ({path}): mean of each epoch with its 95 %"
        " interval over users."
    )
    if drawn:
        caption += " All prompts were drawn at random, so learning cannot raise it."
    figure = charts.rewards(log, learner.n_candidates)
    return {"rewards": Chart("Training reward by call", caption, figure)}
