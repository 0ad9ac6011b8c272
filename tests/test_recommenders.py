"""What every recommender without a language model must do, stated once."""

import shutil
from dataclasses import replace

import polars as pl
import pytest
import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from tiny_models import TITLES

from data_prep.prepare import CustomFiles, DataSettings, prepare
from rpp.baselines.base import Recommender, rank
from rpp.baselines.blend import Blend
from rpp.baselines.bm25 import BM25
from rpp.baselines.factorisation import BPRMF, LightGCN
from rpp.baselines.neighbours import EASE, ItemKNN
from rpp.baselines.popularity import Popularity
from rpp.baselines.sasrec import SASRec
from rpp.baselines.unisrec import UniSRec
from rpp.baselines.vqrec import VQRec
from rpp.data.episodes import load_episodes
from rpp.data.lightgcn import LightGCNSettings
from rpp.metrics import target_ranks
from rpp.types import TargetAccessError, final_scoring

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

    def test_what_was_kept_scores_the_same(self, name, fitted, make, episodes):
        first, folder = fitted(name)
        again = make(name)
        again.fit(folder)
        assert torch.equal(again.score(episodes), first.score(episodes))

    def test_a_refit_repeats_itself_and_leaves_the_global_generator_alone(
        self, name, fitted, checkerboard, make, episodes, tmp_path
    ):
        """Gradients are off, as they are within a test step."""
        again = make(name)
        torch.manual_seed(99)  # the global generator must not matter
        state = torch.get_rng_state()
        with torch.inference_mode():
            again.fit(shutil.copytree(checkerboard, tmp_path / "custom"))
        assert torch.equal(state, torch.get_rng_state())
        assert torch.equal(again.score(episodes), fitted(name)[0].score(episodes))

    def test_learns_from_training_interactions_alone(
        self, name, fitted, checkerboard, make, episodes, tmp_path
    ):
        folder = shutil.copytree(checkerboard, tmp_path / "custom")
        path = folder / "interactions.parquet"
        table = pl.read_parquet(path)
        withheld = pl.col("split") != "train"
        other = pl.when(withheld).then((pl.col("item") + 7) % 24).otherwise(pl.col("item"))
        changed = table.with_columns(other.cast(pl.UInt32).alias("item"))
        assert not changed.equals(table)
        changed.write_parquet(path)
        again = make(name)
        again.fit(folder)
        assert torch.equal(again.score(episodes), fitted(name)[0].score(episodes))

    def test_scores_need_a_fit(self, name, make, episodes):
        with pytest.raises(RuntimeError, match="before fit"):
            make(name).score(episodes)

    def test_no_episodes_no_scores(self, name, fitted):
        with pytest.raises(ValueError, match="no episodes"):
            fitted(name)[0].score([])


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
