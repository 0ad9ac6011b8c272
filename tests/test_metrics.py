"""Metrics: by hand, against torchmetrics, invariants of every results row, bootstrap."""

from __future__ import annotations

import math
from math import log2

import numpy as np
import pytest
import torch
from torchmetrics.functional.retrieval import (
    retrieval_hit_rate,
    retrieval_normalized_dcg,
    retrieval_reciprocal_rank,
)

from rpp.metrics import (
    METRICS,
    chance,
    chance_interval,
    hit_rate,
    mean_interval,
    mrr,
    ndcg,
    paired_difference,
    paired_p_value,
    target_ranks,
)
from rpp.types import Episode, Item, Ranking, failed_ranking


def episode(target: int) -> Episode:
    items = [Item(k, title) for k, title in enumerate(("Heat", "Casino", "Ronin"))]
    return Episode(user=0, history=(Item(3, "Speed"),), candidates=tuple(items), withheld=target)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ((2, 0, 1), 1.0),
        ((0, 2, 1), 1 / math.log2(3)),
        ((0, 1, 2), 1 / math.log2(4)),
    ],
    ids=["first", "second", "third"],
)
def test_ndcg_by_hand(order, expected):
    ranks = target_ranks([Ranking(order, 3, "valid")], [episode(2)])
    assert ndcg(ranks, 10).item() == pytest.approx(expected)


def test_ranks_are_those_of_each_users_own_target():
    order = (1, 2, 0)
    rankings = [Ranking(order, 3, "valid")] * 3
    assert target_ranks(rankings, [episode(0), episode(1), episode(2)]).tolist() == [3, 1, 2]


def test_failed_calls_are_nan_and_never_zero():
    ranks = target_ranks(
        [failed_ranking("connection lost"), Ranking((0, 1, 2), 3, "valid")],
        [episode(0), episode(0)],
    )
    assert ranks[0].isnan()
    for metric in METRICS.values():
        values = metric(ranks)
        assert values[0].isnan()
        assert values[1] == 1


def test_named_only_does_not_count_what_was_appended():
    ranking = Ranking((1, 0, 2), 1, "repaired")
    episodes = [episode(1), episode(0), episode(2)]
    ranks = target_ranks([ranking] * 3, episodes, named_only=True)
    assert ranks.tolist() == [1, math.inf, math.inf]
    assert ndcg(ranks, 10).tolist() == [1, 0, 0]
    assert mrr(ranks, 10).tolist() == [1, 0, 0]
    assert hit_rate(ranks, 5).tolist() == [1, 0, 0]
    assert target_ranks([ranking] * 3, episodes).tolist() == [1, 2, 3]


def test_numbers_of_rankings_and_episodes_must_agree():
    with pytest.raises(ValueError, match="argument"):
        target_ranks([Ranking((0, 1, 2), 3, "valid")], [episode(0), episode(1)])


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("rank", range(1, 12))
def test_metrics_agree_with_torchmetrics(name, rank):
    n_candidates = 12
    scores = torch.arange(n_candidates, 0, -1, dtype=torch.float)
    relevant = torch.zeros(n_candidates, dtype=torch.long)
    relevant[rank - 1] = 1
    kind, k = name.split("@")
    theirs = {
        "ndcg": retrieval_normalized_dcg,
        "mrr": retrieval_reciprocal_rank,
        "hr": retrieval_hit_rate,
    }[kind](scores, relevant, top_k=int(k))
    ours = METRICS[name](torch.tensor([float(rank)], dtype=torch.float64))
    assert ours.item() == pytest.approx(float(theirs))


@pytest.mark.parametrize("n_candidates", [5, 10, 15, 20])
def test_invariants_of_every_results_row(n_candidates):
    rng = np.random.default_rng(n_candidates)
    for n_users in (1, 2, 7, 100):
        ranks = torch.from_numpy(rng.integers(1, n_candidates + 1, n_users).astype(float))
        row = {name: metric(ranks).mean().item() for name, metric in METRICS.items()}
        slack = 1e-12
        assert row["ndcg@1"] == pytest.approx(hit_rate(ranks, 1).mean().item())
        assert row["ndcg@1"] <= row["mrr@5"] + slack
        assert row["mrr@5"] <= row["ndcg@5"] + slack
        assert row["ndcg@5"] <= row["ndcg@10"] + slack
        assert row["mrr@5"] <= row["mrr@10"] + slack
        assert row["ndcg@5"] <= row["hr@5"] + slack
        assert row["mrr@10"] - row["mrr@5"] <= (1 - row["hr@5"]) / 6 + slack


@pytest.mark.parametrize(
    ("n_candidates", "expected"),
    [
        (5, {"ndcg@1": 0.200, "ndcg@5": 0.590, "ndcg@10": 0.590}),
        (
            10,
            {
                "ndcg@1": 0.100,
                "ndcg@5": 0.295,
                "ndcg@10": 0.454,
                "mrr@5": 0.228,
                "mrr@10": 0.293,
                "hr@5": 0.500,
            },
        ),
        (15, {"ndcg@1": 0.067, "ndcg@5": 0.197, "ndcg@10": 0.303}),
        (20, {"ndcg@1": 0.050, "ndcg@5": 0.147, "ndcg@10": 0.227}),
    ],
)
def test_chance(n_candidates, expected):
    assert {name: round(chance(name, n_candidates), 3) for name in expected} == expected


def test_chance_by_hand():
    gains = sum(1 / math.log2(rank + 1) for rank in range(1, 6))
    assert chance("ndcg@5", 10) == pytest.approx(gains / 10)


def test_bootstrap_interval_is_close_to_the_normal_one():
    values = torch.from_numpy(np.random.default_rng(0).normal(0.5, 0.2, 400))
    interval = mean_interval(values)
    half = 1.96 * values.std().item() / 20
    assert interval.mean == pytest.approx(values.mean().item())
    assert interval.low == pytest.approx(interval.mean - half, abs=0.003)
    assert interval.high == pytest.approx(interval.mean + half, abs=0.003)
    narrow = mean_interval(values, confidence=0.5)
    assert interval.low < narrow.low < narrow.high < interval.high


def test_bootstrap_repeats_itself_and_leaves_failures_out():
    values = torch.tensor([0.1, 0.4, 0.9, 1.0, 0.3])
    with_failure = torch.cat([values, torch.tensor([math.nan])])
    assert mean_interval(values, seed=3) == mean_interval(with_failure, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.5], 0.5), ([0.5, 0.5, 0.5], 0.5), ([0.5, math.nan], 0.5)],
    ids=["one user", "all equal", "one left"],
)
def test_bootstrap_without_spread(values, expected):
    assert mean_interval(torch.tensor(values)) == (expected, expected, expected)


def test_bootstrap_of_nothing_is_nan():
    assert all(map(math.isnan, mean_interval(torch.tensor([math.nan, math.nan]))))


def test_paired_difference_pairs_the_users():
    ours = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    interval = paired_difference(ours + 0.1, ours)
    assert interval == pytest.approx((0.1, 0.1, 0.1))  # unpaired, it would be wide
    assert paired_difference(ours, ours + 0.1).mean == pytest.approx(-0.1)


# -- statistics -----------------------------------------------------------------------------------
def test_chance_interval_by_hand():
    """Two candidates: NDCG is 1 or 1/log2(3), each with probability 1/2."""
    other = 1 / log2(3)
    low, high = chance_interval("ndcg@10", 2, 100, 0.95)
    middle, spread = (1 + other) / 2, (1 - other) / 2
    assert (low, high) == pytest.approx(
        (middle - 0.196 * spread, middle + 0.196 * spread), rel=1e-4
    )
    # NDCG@1 of two users is 0, 1/2 or 1, of which 1 has the probability .01
    assert chance_interval("ndcg@1", 10, 2, 0.999) == (0, 1)
    assert chance_interval("ndcg@1", 10, 2, 0.97) == (0, 0.5)


def test_p_value_by_hand():
    """Three users who all gain: 2 of the 2^3 assignments of signs are as extreme."""
    gains = torch.tensor([0.2, 0.1, 0.3, float("nan")])
    assert paired_p_value(gains, torch.zeros(4)) == pytest.approx(2 / 8)
    assert paired_p_value(torch.zeros(4), torch.zeros(4)) == 1
    assert paired_p_value(torch.tensor([0.5, float("nan")]), torch.zeros(2)) == 1


def test_p_value_is_uniform_without_a_difference():
    rng = torch.Generator().manual_seed(0)
    draws = torch.randn(60, 2, 40, generator=rng)
    below = sum(paired_p_value(ours, theirs) < 0.2 for ours, theirs in draws)
    assert 4 <= below <= 22  # 12 of 60 expected
