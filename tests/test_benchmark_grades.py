"""The benchmark of grades: what an order keeps of scores, on hand-made scores."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from benchmarks.grades import measure, reached, readable, rows, told_in_order, told_with_grades
from rpp.data.episodes import load_episodes
from rpp.prompts.evidence import EvidenceSource
from rpp.types import InputError

GRADED = EvidenceSource("{titles}", "none", grades={"very": 2.0, "rather": 1.0, "a little": 0.0})
PLAIN = EvidenceSource("{titles}", "none")
SCORES = torch.tensor([[0.5, -1.0, 2.5, 1.5]], dtype=torch.double)


def test_what_is_told():
    """Of four candidates: the third is the best, the fourth the next; their grades."""
    assert told_in_order(SCORES, 2)[0].tolist() == [[0, 0], [0, 0], [1, 0], [0, 1]]
    told = told_with_grades(SCORES, 2, GRADED)[0]
    assert told.tolist() == [[0] * 5, [0] * 5, [1, 0, 1, 1, 1], [0, 1, 0, 1, 1]]
    low = told_with_grades(SCORES - 1.6, 2, GRADED)[0]  # the fourth is not named any more
    assert low.tolist() == [[0] * 5, [0] * 5, [1, 0, 0, 0, 1], [0] * 5]


def test_ties_stand_in_random_order():
    scores = torch.tensor([[3.0, 1.0, 1.0, 0.0]], dtype=torch.double)
    second, third = 1 / np.log2(3), 1 / np.log2(4)
    assert reached(scores, torch.tensor([0])).item() == 1
    assert reached(scores, torch.tensor([1])).item() == pytest.approx((second + third) / 2)
    assert reached(scores, torch.tensor([3])).item() == pytest.approx(1 / np.log2(5))


def test_grades_keep_what_an_order_loses():
    """Two sources: in each list one is sure and right, the other has no idea."""
    rng = np.random.default_rng(0)
    targets = torch.from_numpy(rng.integers(10, size=400))
    scores = {}
    knows = torch.from_numpy(rng.random(400) < 0.5)
    for name, sure in (("a", knows), ("b", ~knows)):
        table = torch.from_numpy(
            rng.permuted(np.tile(np.linspace(-1.2, 1.2, 10), (400, 1)), axis=1)
        )
        table[sure] = -0.3
        table[sure, targets[sure]] = 2.7
        scores[name] = table
    found = rows(scores, {"a": GRADED, "b": GRADED}, 3, targets)
    means = {name: float(values.mean()) for name, values in found.items()}
    assert means["all scores"] == 1
    assert means["first 3 of each, with grades"] == 1
    assert means["first 3 of each"] < 0.9
    assert means["a alone"] < 0.8
    with pytest.raises(InputError, match="no source of the patterns file has grades"):
        rows(scores, {"a": PLAIN, "b": PLAIN}, 3, targets)


def test_scores_that_tell_nothing_reach_chance():
    rng = np.random.default_rng(1)
    features = torch.from_numpy(rng.normal(size=(2000, 10, 3)))
    targets = torch.from_numpy(rng.integers(10, size=2000))
    assert float(readable(features, targets).mean()) == pytest.approx(0.4544, abs=0.02)


def test_sources_of_a_file(prepared_folder, tmp_path):
    folder = shutil.copytree(prepared_folder, tmp_path / "custom")
    found = measure(folder, "conf/patterns/movies_graded.yaml", ["EASE", "Pop"], 3)
    n_users = len(load_episodes(folder, "train"))
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys(
        ("EASE alone", "Pop alone", "all scores", "first 3 of each",
         "first 3 of each, with grades"), n_users,
    )  # fmt: skip
    assert all(0.25 < float(values.mean()) <= 1 for values in found.values())
    with pytest.raises(InputError, match="has no evidence"):
        measure(folder, "conf/patterns/movies.yaml", None, 3)
    with pytest.raises(InputError, match="has no source 'Bert4Rec': choose from EASE, Item-kNN,"):
        measure(folder, "conf/patterns/movies_graded.yaml", ["Bert4Rec"], 3)
