"""Recommenders without a language model: the contract of them all, then each one's arithmetic."""

import math
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from conftest import TITLES
from jsonargparse import ArgumentParser
from rich.console import Console

from data_prep.prepare import CustomFiles, DataSettings, prepare
from rpp.baselines.base import Recommender, TrainingData, candidate_items, choose, past_items, rank
from rpp.baselines.blend import Blend, z_scores
from rpp.baselines.bm25 import BM25
from rpp.baselines.factorisation import BPRMF, LightGCN
from rpp.baselines.neighbours import EASE, ItemKNN, ease_weights, unit_columns
from rpp.baselines.popularity import Popularity
from rpp.baselines.sasrec import SASRec
from rpp.baselines.unisrec import UniSRec
from rpp.baselines.vqrec import VQRec
from rpp.data.episodes import load_episodes
from rpp.data.lightgcn import LightGCNSettings
from rpp.metrics import target_ranks
from rpp.types import Episode, InputError, Item, TargetAccessError, arbitrary_order, final_scoring

N = 24


@pytest.fixture(scope="session")
def checkerboard(tmp_path_factory):
    """Users and items of one parity meet, user ``u`` meeting ``u + 2`` and ``u`` last.

    All items are equally popular, and the negatives of a user are all of the other parity.
    """
    folder = tmp_path_factory.mktemp("checkerboard")
    lines = ["user,item,timestamp"]
    for user in range(N):
        own = [item for item in range(user % 2, N, 2) if item not in (user, (user + 2) % N)]
        own = [*np.random.default_rng(user).permutation(own).tolist(), (user + 2) % N, user]
        lines += [f"u{user},i{item},{place}" for place, item in enumerate(own)]
    (folder / "interactions.csv").write_text("\n".join(lines))
    titles = ["item,title", *(f"i{item},{TITLES[item]}" for item in range(N))]
    (folder / "titles.csv").write_text("\n".join(titles))
    files = CustomFiles(str(folder / "interactions.csv"), str(folder / "titles.csv"))
    settings = DataSettings(
        "custom", min_interactions=0, n_train_users=4, n_validation_users=8, n_test_users=12,
        custom=files,
    )  # fmt: skip
    prepare(settings, folder / "custom", Console(quiet=True))
    return folder / "custom"


SMALL = {
    "Pop": Popularity,
    "BM25": BM25,
    "Item-kNN": ItemKNN,
    "EASE": lambda: EASE(regularisations=(1.0, 10.0)),
    "blend": Blend,
    "BPR-MF": lambda: BPRMF(dim=8, max_epochs=200),
    "LightGCN": lambda: LightGCN(LightGCNSettings(dim=8, n_epochs=40, batch_size=32)),
    "SASRec": lambda: SASRec(dim=16, dropout=0.1, learning_rates=(0.01,), batch_size=32,
                             max_epochs=6, patience=6),
}  # fmt: skip
FROM_TITLES = {
    "UniSRec": (UniSRec, {"n_experts": 2}),
    "VQ-Rec": (VQRec, {"n_parts": 4, "n_codes": 16}),
}
COLLABORATIVE = tuple(name for name in SMALL if name not in ("Pop", "BM25"))


@pytest.fixture(scope="session")
def make(prepared_folder, tiny_bert_folder, tmp_path_factory):
    """Small recommenders by name; those that know titles only train on the two taste groups."""
    source = tmp_path_factory.mktemp("source") / "custom"
    shutil.copytree(prepared_folder, source)

    def build(name, **options):
        if name in SMALL:
            return SMALL[name]()
        kind, own = FROM_TITLES[name]
        given = {"sources": (str(source),), "text_model": str(tiny_bert_folder), "dim": 16,
                 "inner_dim": 16, "max_windows": 100, "max_epochs": 1} | own | options  # fmt: skip
        return kind(**given)

    return build


@pytest.fixture(scope="session")
def fitted(checkerboard, make, tmp_path_factory):
    """Recommenders fitted to the checkerboard, each in a copy of its own, once."""
    done = {}

    def fit(name):
        if name not in done:
            folder = tmp_path_factory.mktemp("fitted") / "custom"
            shutil.copytree(checkerboard, folder)
            recommender = make(name)
            recommender.fit(folder)
            done[name] = recommender, folder
        return done[name]

    return fit


@pytest.fixture(scope="session")
def episodes(checkerboard):
    return load_episodes(checkerboard, "test")


every_one = pytest.mark.parametrize("name", [*SMALL, *FROM_TITLES])


@every_one
class TestContract:
    def test_scores_every_candidate_without_looking_at_targets(self, name, fitted, episodes):
        with pytest.raises(TargetAccessError):
            _ = episodes[0].target
        scores = fitted(name)[0].score(episodes)
        assert scores.shape == (12, 10)
        assert scores.dtype == torch.float64
        moved = [replace(e, withheld=(e.withheld + 1) % 10, split="train") for e in episodes]
        assert torch.equal(fitted(name)[0].score(moved), scores)

    def test_order_of_candidates_does_not_matter(self, name, fitted, episodes):
        recommender = fitted(name)[0]
        turned = [replace(e, candidates=e.candidates[::-1]) for e in episodes]
        torch.testing.assert_close(
            recommender.score(turned).flip(1), recommender.score(episodes), rtol=1e-5, atol=1e-5
        )

    def test_company_does_not_matter(self, name, fitted, episodes):
        recommender = fitted(name)[0]
        together = recommender.score(episodes)
        apart = torch.cat([recommender.score([episode]) for episode in episodes[::-1]]).flip(0)
        torch.testing.assert_close(apart, together, rtol=1e-5, atol=1e-5)

    def test_refit_repeats_itself(self, name, fitted, checkerboard, make, episodes, tmp_path):
        first, folder = fitted(name)
        for place in (folder, shutil.copytree(checkerboard, tmp_path / "custom")):  # kept; anew
            again = make(name)
            torch.manual_seed(99)  # the global generator must not matter
            again.fit(place)
            assert torch.equal(again.score(episodes), first.score(episodes))

    def test_learns_from_training_interactions_alone(
        self, name, fitted, checkerboard, make, episodes, tmp_path
    ):
        folder = shutil.copytree(checkerboard, tmp_path / "custom")
        path = folder / "interactions.parquet"
        table = pl.read_parquet(path)
        withheld = pl.col("split") != "train"
        other = pl.when(withheld).then((pl.col("item") + 7) % N).otherwise(pl.col("item"))
        changed = table.with_columns(other.cast(pl.UInt32).alias("item"))
        assert not changed.equals(table)
        changed.write_parquet(path)
        again = make(name)
        again.fit(folder)
        assert torch.equal(again.score(episodes), fitted(name)[0].score(episodes))

    def test_leaves_the_global_generator_alone(self, name, checkerboard, make, tmp_path):
        state = torch.get_rng_state()
        make(name).fit(shutil.copytree(checkerboard, tmp_path / "custom"))
        assert torch.equal(state, torch.get_rng_state())

    def test_scores_need_a_fit(self, name, make, episodes):
        with pytest.raises(RuntimeError, match="before fit"):
            make(name).score(episodes)

    def test_no_episodes_no_scores(self, name, fitted):
        with pytest.raises(ValueError, match="no episodes"):
            fitted(name)[0].score([])

    def test_fits_where_gradients_are_off(self, name, checkerboard, make, tmp_path):
        """As they are within a test step."""
        with torch.inference_mode():
            make(name).fit(shutil.copytree(checkerboard, tmp_path / "custom"))


@pytest.mark.parametrize("name", COLLABORATIVE)
def test_finds_the_withheld_diagonal(name, fitted, episodes):
    """All items are equally popular, so only the pattern tells them apart."""
    rankings = rank(fitted(name)[0].score(episodes), episodes)
    with final_scoring():
        assert target_ranks(rankings, episodes).tolist() == [1] * 12


@pytest.mark.parametrize("name", ["Pop", "BM25"])
def test_what_knows_no_users_cannot_find_it(name, fitted, episodes):
    rankings = rank(fitted(name)[0].score(episodes), episodes)
    with final_scoring():
        assert target_ranks(rankings, episodes).mean() > 2


def group_encodings(data, *_):
    """Titles of the two taste groups in two clouds."""
    numbers = torch.tensor([TITLES.index(title) for title in data.titles])
    noise = torch.randn(len(TITLES), 24, generator=torch.Generator().manual_seed(0))[numbers]
    return noise + 2 * (2 * (numbers[:, None] >= 75) - 1)


@pytest.mark.parametrize("name", FROM_TITLES)
def test_taste_carries_over_to_a_set_never_trained_on(
    name, make, custom_csv, tmp_path, monkeypatch
):
    """Users of the same two groups, whose items have other numbers: only titles can tell."""
    rows = pl.read_csv(custom_csv.interactions)
    renamed = rows.filter(pl.col("user").str.slice(1).cast(pl.Int64) < 200).with_columns(
        pl.format("x{}", 149 - pl.col("item").str.slice(1).cast(pl.Int64)).alias("item")
    )
    renamed.write_csv(tmp_path / "interactions.csv")
    titles = ["item,title", *(f"x{149 - item},{TITLES[item]}" for item in range(150))]
    (tmp_path / "titles.csv").write_text("\n".join(titles))
    files = CustomFiles(str(tmp_path / "interactions.csv"), str(tmp_path / "titles.csv"))
    settings = DataSettings(
        "custom", n_train_users=20, n_validation_users=5, n_test_users=150, custom=files
    )
    prepare(settings, tmp_path / "other", Console(quiet=True))
    monkeypatch.setattr("rpp.baselines.text.encode_titles", group_encodings)
    recommender = make(name, max_epochs=4, max_windows=300, batch_size=256, lr=5e-3, dropout=0.1)
    recommender.fit(tmp_path / "other")
    test = load_episodes(tmp_path / "other", "test")
    rankings = rank(recommender.score(test), test)
    with final_scoring():
        upper = (target_ranks(rankings, test) <= 5).double().mean()
    assert upper > 0.7  # chance .5 with a standard error of .04


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
    assert score([Episode(0, (shown[1],), shown, 0)]).tolist() == [[0, 0]]


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


@pytest.mark.parametrize("name", ["BPR-MF", "SASRec", "EASE", "Item-kNN"])
def test_what_was_learned_is_kept_for_its_data_and_settings(
    name, make, checkerboard, tmp_path, caplog
):
    folder = shutil.copytree(checkerboard, tmp_path / "custom")
    make(name).fit(folder)
    (kept,) = (folder / "baselines").glob("*.safetensors")
    before = kept.stat().st_mtime_ns
    make(name).fit(folder)
    assert kept.stat().st_mtime_ns == before
    other = make(name)
    if hasattr(other, "seed"):
        other.seed = 1
    else:
        other.lengths = (1, 2)
    other.fit(folder)
    assert kept.stat().st_mtime_ns != before
    assert "was made with other settings" in caplog.text


@every_one
def test_can_be_named_in_yaml(name, make):
    kind = type(make(name))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--method", type=Recommender)
    given = {"class_path": f"{kind.__module__}.{kind.__name__}"}
    if name in FROM_TITLES:
        given["init_args"] = {"sources": ["data/ml-1m", "data/games"], "dim": 30}
    made = parser.instantiate(parser.parse_object({"method": given})).method
    assert type(made) is kind
    if name in FROM_TITLES:
        assert made.sources == ("data/ml-1m", "data/games")
        assert made.dim == 30


def test_a_blend_of_any_parts_can_be_named_in_yaml():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--method", type=Recommender)
    knn = {"class_path": "rpp.baselines.neighbours.ItemKNN", "init_args": {"lengths": [5, 0]}}
    parts = [{"class_path": "rpp.baselines.popularity.Popularity"}, knn]
    given = {"class_path": "rpp.baselines.blend.Blend", "init_args": {"recommenders": parts}}
    made = parser.instantiate(parser.parse_object({"method": given})).method
    assert made.name == "Pop + Item-kNN"
    assert made.recommenders[1].lengths == (5, 0)
