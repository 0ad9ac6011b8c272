"""Each recommender's arithmetic by hand."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from rpp.baselines.base import Recommender, TrainingData, candidate_items, choose, past_items, rank
from rpp.baselines.blend import Blend, z_scores
from rpp.baselines.bm25 import BM25
from rpp.baselines.factorisation import BPRMF
from rpp.baselines.neighbours import EASE, ItemKNN, ease_weights, unit_columns
from rpp.baselines.popularity import Popularity
from rpp.baselines.sasrec import SASRec
from rpp.baselines.unisrec import UniSRec
from rpp.baselines.vqrec import VQRec
from rpp.data.episodes import load_episodes
from rpp.types import Episode, InputError, Item, arbitrary_order


def test_ties_are_broken_by_neither_position_nor_target(tiny_episodes):
    scores = torch.zeros(12, 10)
    rankings = rank(scores, tiny_episodes, seed=3)
    for episode, ranking in zip(tiny_episodes, rankings, strict=True):
        assert list(ranking.order) == arbitrary_order(episode, 3)
    turned = [replace(e, candidates=e.candidates[::-1]) for e in tiny_episodes]
    assert [tuple(9 - k for k in r.order) for r in rank(scores, turned, seed=3)] == [
        ranking.order for ranking in rankings
    ]
    scores[:, 4] = 1
    assert {ranking.order[0] for ranking in rank(scores, tiny_episodes)} == {4}


def test_choose_takes_the_first_of_the_best(tiny_episodes):
    targets = torch.tensor([e.target for e in tiny_episodes])

    def scorer(weight):
        return lambda episodes: weight * torch.nn.functional.one_hot(targets, 10).double()

    assert choose([-1, 2, 0, 3], scorer, tiny_episodes) == 2


def episode(history, candidates, user=0):
    return Episode(
        user,
        tuple(Item(k, f"past {k}") for k in history),
        tuple(Item(k, f"item {k}") for k in candidates),
        0,
    )


def data(rows, n_items, titles=None):
    """Training data of users' item lists."""
    users = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    items = np.array([item for row in rows for item in row])
    names = tuple(titles or (f"item {k}" for k in range(n_items)))
    return TrainingData(None, users, items, len(rows), names, (), "made up")


def test_history_lengths():
    one = episode([4, 5, 6], [0, 1])
    assert past_items(one, 2) == [5, 6]
    assert past_items(one, 0) == past_items(one, 9) == [4, 5, 6]
    assert candidate_items([one, one]).tolist() == [[0, 1], [0, 1]]


def test_a_repeated_interaction_counts_once_in_the_matrix():
    assert data([[0, 1, 1], [2]], 4).matrix.toarray().tolist() == [[1, 1, 0, 0], [0, 0, 1, 0]]


def test_popularity_by_hand():
    scores = Popularity().learn(data([[0, 1], [1, 2], [1]], 4))([episode([0], [1, 2, 3])])
    assert scores.tolist() == [[3, 1, 0]]


def test_knn_by_hand():
    """Item 0 has users 0 and 1, item 1 users 0, 1 and 2, item 2 user 1, item 3 nobody."""
    training = data([[0, 1], [0, 1, 2], [1]], 4)
    both = ItemKNN(lengths=(0,)).learn(training)([episode([1, 0], [2, 3])])
    zero_two, one_two = 1 / math.sqrt(2 * 1), 1 / math.sqrt(3 * 1)
    torch.testing.assert_close(both, torch.tensor([[zero_two + one_two, 0]]).double())
    last = ItemKNN(lengths=(1,)).learn(training)([episode([1, 0], [2, 3])])
    torch.testing.assert_close(last, torch.tensor([[zero_two, 0]]).double())


def test_unit_columns():
    columns = unit_columns(data([[0, 1], [0, 1, 2], [1]], 4).matrix)
    lengths = (columns.toarray() ** 2).sum(axis=0)
    np.testing.assert_allclose(lengths, [1, 1, 1, 0])


def test_ease_by_hand():
    r"""Gram [[2, 1], [1, 2]] + I has the inverse [[3, -1], [-1, 3]] / 8."""
    weights = ease_weights(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), 1.0)
    torch.testing.assert_close(weights, torch.tensor([[0.0, 1 / 3], [1 / 3, 0.0]]))


def test_ease_is_each_items_ridge_regression_on_the_others():
    matrix = torch.randint(2, (30, 5), generator=torch.Generator().manual_seed(0)).double()
    weights = ease_weights(matrix.T @ matrix, 2.0)
    for item in range(5):
        others = [k for k in range(5) if k != item]
        x, y = matrix[:, others], matrix[:, item]
        ridge = torch.linalg.solve(x.T @ x + 2.0 * torch.eye(4).double(), x.T @ y)
        torch.testing.assert_close(weights[others, item], ridge)


@pytest.fixture(scope="module")
def episodes(checkerboard):
    return load_episodes(checkerboard, "test")


def test_ease_of_a_large_catalogue_models_the_popular_part(checkerboard, episodes, tmp_path):
    folder = shutil.copytree(checkerboard, tmp_path / "custom")
    part = EASE(regularisations=(1.0,), lengths=(0,), max_items=10)
    part.fit(folder)
    outside = candidate_items(episodes) >= 10  # all are equally popular: the first ten stay
    scores = part.score(episodes)
    assert (scores[outside] == 0).all()
    assert (scores[~outside] != 0).any()


def test_bm25_by_hand():
    titles = ("red river", "red red mountain road", "blue lake")
    score = BM25(n_history=1).learn(data([[0]], 3, titles))
    one = Episode(0, (Item(2, "blue lake"), Item(0, "red river")), tuple(
        Item(k, titles[k]) for k in (1, 2)
    ), 0)  # fmt: skip
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))  # "red" is in two of three titles
    length = 1.5 * (1 - 0.75 + 0.75 * 4 / (8 / 3))
    torch.testing.assert_close(score([one]), torch.tensor([[idf * 2 / (2 + length), 0.0]]).double())


def test_bm25_counts_repeated_words_and_takes_any_title():
    titles = ("sun", "sun", "sun moon", "!!!")
    score = BM25().learn(data([[0]], 4, titles))
    past = tuple(Item(k, titles[k]) for k in (0, 1))
    shown = (Item(2, titles[2]), Item(3, titles[3]))
    once, twice = score([Episode(0, past[:1], shown, 0), Episode(0, past, shown, 0)])
    torch.testing.assert_close(twice, 2 * once)
    assert once[0] > 0
    of_words, of_signs = score([Episode(0, (shown[1],), shown, 0)])[0].tolist()
    assert of_words == 0 < of_signs  # a title of signs is like itself alone


def test_z_scores_by_hand():
    rows = torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]).double()
    root = math.sqrt(1.5)
    torch.testing.assert_close(
        z_scores(rows), torch.tensor([[-root, 0.0, root], [0.0, 0.0, 0.0]]).double()
    )
    assert z_scores(torch.full((1, 7), 0.1).double()).tolist() == [[0.0] * 7]


def test_a_blend_adds_z_scores_and_names_its_parts(checkerboard, episodes, tmp_path):
    folder = shutil.copytree(checkerboard, tmp_path / "custom")
    parts = [BM25(), ItemKNN((2,))]
    both = Blend(parts)
    assert both.name == "BM25 + Item-kNN"
    both.fit(folder)
    for part in parts:
        part.fit(folder)
    expected = sum(z_scores(part.score(episodes)) for part in parts)
    torch.testing.assert_close(both.score(episodes), expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: ItemKNN(lengths=()), r"history lengths are \(\)"),
        (lambda: ItemKNN(lengths=(-1,)), r"history lengths are \(-1,\)"),
        (lambda: EASE(regularisations=(0.0,)), "name positive numbers"),
        (lambda: EASE(max_items=0), "max_items is 0"),
        (lambda: Blend([]), "name at least one"),
        (lambda: BPRMF(learning_rates=()), "needs a learning rate"),
        (lambda: SASRec(learning_rates=()), "needs a learning rate"),
        (lambda: SASRec(n_heads=3), "dim is 64 and n_heads 3"),
        (lambda: SASRec(max_epochs=0), "max_epochs is 0: choose 1 or more"),
        (lambda: SASRec(batch_size=0), "batch_size is 0"),
        (lambda: UniSRec(sources=("a",), max_windows=0), "max_windows is 0"),
        (UniSRec, "UniSRec needs either sources"),
        (lambda: VQRec(sources=("a",), weights="b"), "VQ-Rec needs either sources"),
    ],
)
def test_nonsense_is_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        wrong()


def test_a_blend_of_any_parts_can_be_named_in_yaml():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--method", type=Recommender)
    knn = {"class_path": "rpp.baselines.neighbours.ItemKNN", "init_args": {"lengths": [5, 0]}}
    parts = [{"class_path": "rpp.baselines.popularity.Popularity"}, knn]
    given = {"class_path": "rpp.baselines.blend.Blend", "init_args": {"recommenders": parts}}
    made = parser.instantiate(parser.parse_object({"method": given})).method
    assert made.name == "Pop + Item-kNN"
    assert made.recommenders[1].lengths == (5, 0)
