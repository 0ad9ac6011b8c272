"""Sensitivity of a language model to the prompt: ``python benchmarks/sensitivity.py``.

Every validation and training user of a data set is ranked with the same prompts, drawn uniformly
from the action space. Printed are the mean NDCG@10 and how it varies: over prompts, averaged over
users; over prompts within a user; and the score of each user's best prompt, an upper bound that no
method can reach, because the best of several random draws is high as well.
A second table has the mean by history length. No test user is touched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from data_prep.prepare import DataSettings, prepare
from rpp.data.episodes import load_episodes
from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.metrics import METRICS, mean_interval, ndcg, target_ranks
from rpp.prompts.compose import compose
from rpp.prompts.patterns import load_patterns
from rpp.prompts.static import draw_static_prompts
from rpp.ranker import Decoding, Ranker


def main() -> None:
    """Rank the same users with many prompts and print how scores vary."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=str, default="ml-100k")
    parser.add_argument("--n_users", type=int, default=60)
    parser.add_argument("--n_prompts", type=int, default=16)
    parser.add_argument("--history_lengths", type=list[int], default=[1, 4, 10, 20])
    parser.add_argument("--decoding", type=Decoding, default="likelihood")
    parser.add_argument("--show_candidates", type=bool, default=False)
    parser.add_argument("--patterns", type=str, default="conf/patterns/movies.yaml")
    parser.add_argument("--adapters", nargs="*", default=[], help="Folders of LoRA adapters.")
    parser.add_argument("--template", type=Literal["chat", "alpaca", "none"], default="chat")
    parser.add_argument("--model", type=str, default="smollm2-135m-instruct")
    given = parser.parse_args()
    folder = Path("data") / given.data
    if not folder.is_dir():
        prepare(DataSettings(given.data), folder)
    episodes = (load_episodes(folder, "validation") + load_episodes(folder, "train"))[
        : given.n_users
    ]
    patterns = load_patterns(given.patterns, history_lengths=given.history_lengths)
    prompts = draw_static_prompts(patterns, given.n_prompts, n_steps=1, seed=0)
    lengths = torch.tensor([prompt.length for prompt in prompts])
    drawn = sorted({prompt.length for prompt in prompts})
    table = Table(
        "adapter", "N@1", "N@10 [95 %]", "best prompt", "worst", "sd over prompts",
        "sd within a user", "each user's best",
    )  # fmt: skip
    by_length = Table("adapter, by history length", *map(str, drawn))
    for adapter in [None, *given.adapters]:
        llm = HuggingFaceLanguageModel(given.model, adapter=adapter, template=given.template)
        ranker = Ranker(
            llm,
            given.decoding,
            show_candidates=given.show_candidates,
            per_character=adapter is None,
        )
        ranks = []
        for static in prompts:
            texts = compose(
                episodes, patterns, [static.actions] * len(episodes),
                [static.length] * len(episodes), ranker.display, fits=ranker.fits,
            )  # fmt: skip
            ranks.append(target_ranks(ranker.rank(texts, episodes), episodes))
        scores = torch.stack([ndcg(each, 10) for each in ranks])  # (prompts, users)
        by_prompt, by_user = scores.mean(1), mean_interval(scores.mean(0))
        first = torch.stack([METRICS["ndcg@1"](each) for each in ranks]).mean()
        table.add_row(
            adapter or "none",
            f"{float(first):.3f}",
            f"{by_user.mean:.3f} \\[{by_user.low:.3f}, {by_user.high:.3f}]",
            f"{float(by_prompt.max()):.3f}",
            f"{float(by_prompt.min()):.3f}",
            f"{float(by_prompt.std()):.3f}",
            f"{float(scores.std(0).mean()):.3f}",
            f"{float(scores.max(0).values.mean()):.3f}",
        )
        means = [float(by_prompt[lengths == length].mean()) for length in drawn]
        by_length.add_row(adapter or "none", *(f"{mean:.3f}" for mean in means))
    Console().print(table, by_length)


if __name__ == "__main__":
    main()
