"""Quality and speed of each decoding: ``python benchmarks/decodings.py``.

One static prompt, scored on the training and validation users of the embedded default (their
validation interaction); no test user is touched.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter
from typing import get_args

from rich.console import Console
from rich.table import Table

from data_prep.prepare import DataSettings, prepare
from rpp.data.episodes import load_episodes
from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.metrics import mean_interval, ndcg, target_ranks
from rpp.prompts.compose import Layout, compose
from rpp.prompts.patterns import load_patterns
from rpp.ranker import Decoding, Ranker

SETTINGS: list[tuple[Decoding, bool, Layout]] = [
    *((decoding, True, "paper") for decoding in get_args(Decoding)),
    ("likelihood", False, "paper"),
    ("first_token", True, "history_first"),
    ("likelihood", False, "history_first"),
]


def main() -> None:
    """Rank the same users in every way and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--n-users", type=int, default=120)
    parser.add_argument("--n-history", type=int, default=5)
    given = parser.parse_args()
    folder = Path("data/ml-100k")
    prepare(
        DataSettings("ml-100k", n_train_users=80, n_validation_users=40, n_test_users=100), folder
    )
    episodes = load_episodes(folder, "train") + load_episodes(folder, "validation")
    episodes = episodes[: given.n_users]
    patterns = load_patterns("conf/patterns/movies.yaml")
    llm = HuggingFaceLanguageModel(given.model)
    llm.score(["warm"], [["up"]])
    table = Table("decoding", "list shown", "layout", "NDCG@10 [95 %]", "valid replies", "s/prompt")
    for decoding, shown, layout in SETTINGS:
        ranker = Ranker(llm, decoding, show_candidates=shown, layout=layout)
        actions = [(0, 0, 1, 0)] * len(episodes)
        lengths = [given.n_history] * len(episodes)
        prompts = compose(episodes, patterns, actions, lengths, ranker.display)
        started = perf_counter()
        rankings = ranker.rank(prompts, episodes)
        seconds = (perf_counter() - started) / len(episodes)
        score = mean_interval(ndcg(target_ranks(rankings, episodes), 10))
        valid = sum(ranking.status == "valid" for ranking in rankings) / len(rankings)
        table.add_row(
            decoding,
            "yes" if shown else "no",
            layout,
            f"{score.mean:.3f} \\[{score.low:.3f}, {score.high:.3f}]",
            f"{valid:.0%}",
            f"{seconds:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
