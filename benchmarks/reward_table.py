"""Rewards of a real language model for many prompts: ``python -m benchmarks.reward_table``.

Training users of a data set, two targets each, are ranked with each of the 64 prompts of
:func:`benchmarks.worlds.table_patterns`, by the frozen model and by the model with its adapter. No
test user is touched, and none whom the adapter has learnt from. The table is one Parquet file:

- ``model``: data set, and the adapter's name or ``frozen``;
- ``user``: number of the user, in an order that tells nothing; ``number``: which of their targets;
- ``history_length``: number of past interactions;
- ``vector``: the user's collaborative vector, made without the targets;
- ``ndcg``: reward of every prompt, the patterns' options in their order, the last one fastest.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from tqdm import tqdm

from benchmarks.learners import TABLE
from benchmarks.worlds import N_CANDIDATES, table_patterns
from rpp.baselines.evidence import RecommenderEvidence
from rpp.data.datamodule import EpisodeDataModule
from rpp.llms.cache import ReplyCache, default_folder
from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.llms.tuned import left_out, marks
from rpp.prompts.static import StaticPrompt
from rpp.ranker import Ranker
from rpp.rollout import Environment
from rpp.types import Episode, InputError

N_HELD_OUT = {"n_validation_users": 49, "n_test_users": 200}
"""Users of the prepared folder that are not asked."""

ADAPTERS = ("checkpoints/adapters/smollm2-ml-100k-evidence", "")

N_AT_ONCE = 20
"""Episodes whose prompts are sent together."""


def every_prompt() -> list[StaticPrompt]:
    """The prompts of the table, in the order of its rewards."""
    patterns = table_patterns()
    actions = np.ndindex(*patterns.n_actions)
    at = patterns.names.index("history")
    return [StaticPrompt(row, patterns.history.lengths[row[at]]) for row in actions]


def rewards(environment: Environment, episodes: Sequence[Episode]) -> Iterator[list[float]]:
    """NDCG of every prompt, episode by episode.

    Raises:
        InputError: If the language model does not answer.
    """
    prompts = every_prompt()
    for start in tqdm(range(0, len(episodes), N_AT_ONCE)):
        some = episodes[start : start + N_AT_ONCE]
        scores = environment.step_static(some, prompts).rewards()
        if not scores.isfinite().all():
            raise InputError("the language model has not answered every prompt: run it again")
        yield from scores.reshape(len(some), -1).tolist()


def unknown_to(adapter: str | None, data: EpisodeDataModule) -> list[Episode]:
    """Training episodes of the users whom an adapter has not learnt from.

    Raises:
        InputError: If it has learnt from all.
    """
    episodes = data.episodes("train")
    known = None if adapter is None else left_out(adapter).get(data.settings.name)
    if known is None:
        return episodes
    unknown = [each for each in episodes if known.issuperset(marks([each.user_id]))]
    if not unknown:
        raise InputError(f"{adapter} has learnt from all of these users: take others by --data")
    return unknown


def table(data: EpisodeDataModule, adapter: str | None, model: str) -> pl.DataFrame:
    """The rows of one model.

    Args:
        data: The users.
        adapter: Folder of the adapter; ``None``: the frozen model.
        model: Name or folder of the model.

    Raises:
        InputError: If the adapter has learnt from all users.
    """
    name, episodes = data.settings.name, unknown_to(adapter, data)
    llm = HuggingFaceLanguageModel(model, adapter=adapter)
    llm.place(torch.device("cuda" if torch.cuda.is_available() else "cpu"), None)
    ranker = Ranker(
        llm, "likelihood", show_candidates=False, per_character=adapter is None,
        cache=ReplyCache(default_folder()),
    )  # fmt: skip
    patterns = table_patterns()
    evidence = RecommenderEvidence.read(patterns.evidence, data.folder, episodes=episodes)
    users = [episode.user for episode in episodes]
    shuffled = np.random.default_rng(0).permutation(sorted(set(users))).tolist()
    vectors = data.vectors.for_users(users, [[i.index for i in e.history] for e in episodes])
    label = f"{name}, {Path(adapter).name if adapter else 'frozen'}"
    return pl.DataFrame(
        {
            "model": [label] * len(episodes),
            "user": [shuffled.index(user) for user in users],
            "number": [episode.number for episode in episodes],
            "history_length": [len(episode.history) for episode in episodes],
            "vector": vectors.half().float().tolist(),
            "ndcg": [*rewards(Environment(patterns, ranker, evidence=evidence), episodes)],
        },
        schema_overrides={
            "user": pl.UInt16,
            "number": pl.UInt8,
            "history_length": pl.UInt16,
            "vector": pl.List(pl.Float32),
            "ndcg": pl.List(pl.Float32),
        },
    ).sort("user", "number")


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask, and add the rows to the table; those of the same model are replaced."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="ml-100k")
    parser.add_argument("--data_dir", default="data/reward_table")
    parser.add_argument("--users", type=int, default=150)
    parser.add_argument("--targets", type=int, default=2)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--adapters", nargs="*", default=ADAPTERS, help="empty: none")
    parser.add_argument("--out", type=Path, default=TABLE)
    given = parser.parse_args(arguments)
    options: dict[str, Any] = {"name": given.data, "data_dir": given.data_dir} | N_HELD_OUT
    data = EpisodeDataModule(
        **options, n_candidates=N_CANDIDATES, n_train_users=given.users, n_targets=given.targets
    )
    data.prepare_data()
    data.setup("fit")
    made = [table(data, adapter or None, given.model) for adapter in given.adapters]
    if given.out.is_file():
        fresh = [each["model"][0] for each in made]
        made.insert(0, pl.read_parquet(given.out).filter(~pl.col("model").is_in(fresh)))
    pl.concat(made).write_parquet(given.out, compression="zstd", compression_level=19)


if __name__ == "__main__":
    main()
