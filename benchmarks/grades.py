"""What grades keep of recommenders' scores: ``python -m benchmarks.grades NAME --patterns FILE``.

No language model is asked. The sources of a patterns file rank the candidates of training users,
whose targets they do not know. Weights of what a prompt would tell (conditional logit, five-fold
cross-validation over users) give the NDCG@10 that a reader can reach who weighs all of it best:

- the scores of all sources, as z-scores;
- the first ``k`` titles of each, in order;
- the same with the file's grades.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from torch import Tensor

from data_prep.prepare import DataSettings, prepare
from data_prep.sources import SOURCES
from rpp.baselines.blend import z_scores
from rpp.baselines.evidence import RecommenderEvidence, fit_apart
from rpp.comparison.mixture import softmax_weights
from rpp.data.episodes import load_episodes
from rpp.metrics import mean_interval, ndcg
from rpp.prompts.evidence import EvidenceSource
from rpp.prompts.patterns import load_patterns
from rpp.types import InputError

N_FOLDS = 5
RIDGE = 1e-3


def places(scores: Tensor) -> Tensor:
    """Place of every candidate by a source, from 0."""
    return scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def told_in_order(scores: Tensor, k: int) -> Tensor:
    """Which title is named in which place, ``(B, M, k)``."""
    return torch.stack([(places(scores) == place).double() for place in range(k)], dim=-1)


def told_with_grades(scores: Tensor, k: int, source: EvidenceSource) -> Tensor:
    """Place and grade of every title that is named, ``(B, M, k + grades)``."""
    named = (places(scores) < k) & (scores > min(source.grades.values()))
    grades = [(scores > bound) & named for bound in source.grades.values()]
    graded = torch.stack([grade.double() for grade in grades], dim=-1)
    return torch.cat([told_in_order(scores, k) * named[..., None], graded], dim=-1)


def readable(features: Tensor, targets: Tensor) -> Tensor:
    """NDCG@10 of every user by weights that were fitted to other users, ``(B,)``.

    Args:
        features: What is told of the candidates, ``(B, M, J)``.
        targets: Place of each target, ``(B,)``.
    """
    fold = torch.from_numpy(np.random.default_rng(0).permutation(len(targets)) % N_FOLDS)
    scores = torch.zeros(features.shape[:2], dtype=torch.double)
    for number in range(N_FOLDS):
        others = fold != number
        weights = softmax_weights(features[others], targets[others], RIDGE)
        scores[~others] = features[~others] @ weights
    return reached(scores, targets)


def reached(scores: Tensor, targets: Tensor) -> Tensor:
    """Expected NDCG@10 of every user with ties in random order, ``(B,)``."""
    own = scores.gather(1, targets[:, None])
    above, tied = (scores > own).sum(dim=1), (scores == own).sum(dim=1)
    gains = ndcg(torch.arange(1.0, scores.shape[1] + 1), 10).double().cumsum(0)
    sums = torch.cat([torch.zeros(1, dtype=torch.double), gains])
    return (sums[above + tied] - sums[above]) / tied


def rows(
    scores: Mapping[str, Tensor], sources: Mapping[str, EvidenceSource], k: int, targets: Tensor
) -> dict[str, Tensor]:
    """NDCG@10 of every user, by what is told."""
    graded = [name for name in scores if sources[name].grades]
    if not graded:
        raise InputError("no source of the patterns file has grades: add `grades` to one")
    alone = {f"{name} alone": reached(table, targets) for name, table in scores.items()}
    everything = {
        "all scores": [table[..., None] for table in scores.values()],
        f"first {k} of each": [told_in_order(table, k) for table in scores.values()],
        f"first {k} of each, with grades": [
            told_with_grades(table, k, sources[name]) if name in graded else told_in_order(table, k)
            for name, table in scores.items()
        ],
    }
    together = {
        name: readable(torch.cat(parts, dim=-1), targets) for name, parts in everything.items()
    }
    return alone | together


def measure(folder: Path, patterns: str, names: Sequence[str] | None, k: int) -> dict[str, Tensor]:
    """NDCG@10 of every training user, by what is told.

    Args:
        folder: Prepared data.
        patterns: File with evidence.
        names: Its sources; ``None``: all that an option names.
        k: Titles named by each.

    Raises:
        InputError: If the file has no evidence, none with grades, or not a source of this name.
    """
    pattern = load_patterns(patterns).evidence
    if pattern is None:
        raise InputError(f"{patterns} has no evidence: name a file with the section")
    episodes = load_episodes(folder, "train")
    evidence = RecommenderEvidence.read(pattern, folder, episodes=episodes)
    chosen = sorted(evidence.named) if names is None else names
    for name in chosen:
        if name not in evidence.recommenders:
            known = ", ".join(evidence.recommenders)
            raise InputError(f"{patterns} has no source {name!r}: choose from {known}")
    scores = {}
    for name in chosen:
        recommender = evidence.recommenders[name]
        fit_apart(recommender, evidence.data)
        scores[name] = z_scores(recommender.score(episodes).double())
    targets = torch.tensor([episode.target for episode in episodes])
    return rows(scores, pattern.sources, k, targets)


def main(args: list[str] | None = None) -> None:
    """Measure, and print a line for each way of telling."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("name", type=Literal[tuple(SOURCES)], help="The data set.")
    parser.add_argument("--patterns", default="conf/patterns/movies_graded.yaml")
    parser.add_argument("--sources", nargs="+", help="Default: all that an option names.")
    parser.add_argument("--k", type=int, default=3, help="Titles named by each source.")
    parser.add_argument("--n_train_users", type=int, default=700)
    parser.add_argument("--n_test_users", type=int, default=200)
    given = parser.parse_args(args)
    folder = Path("data/grades") / given.name
    settings = DataSettings(
        given.name,
        order=SOURCES[given.name].orders[0],
        n_train_users=given.n_train_users,
        n_validation_users=1,
        n_test_users=given.n_test_users,
    )
    prepare(settings, folder, Console(quiet=True))
    for told, values in measure(folder, given.patterns, given.sources, given.k).items():
        mean, low, high = mean_interval(values)
        Console().print(f"{told:40s} {mean:.3f} [{low:.3f}, {high:.3f}]", highlight=False)


if __name__ == "__main__":
    main()
