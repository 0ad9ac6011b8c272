"""The benchmark of the recommenders on MovieLens-100K: the figures are the methods' own."""

from __future__ import annotations

import logging
import sys

import pytest
from cli_setup import ROOT

from benchmarks import recommenders
from data_prep.prepare import DataSettings, prepare
from rpp.baselines.base import rank
from rpp.baselines.neighbours import ItemKNN
from rpp.data.episodes import load_episodes
from rpp.metrics import METRICS, target_ranks
from rpp.types import final_scoring

pytestmark = pytest.mark.real


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run it and return what stood on the terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    (tmp_path / "conf").symlink_to(ROOT / "conf")

    def run(*options):
        small = ("--n_validation_users", "20", "--n_test_users", "50")
        monkeypatch.setattr(sys, "argv", ["recommenders.py", "ml-100k", *small, *options])
        recommenders.main()
        return capsys.readouterr().out

    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    yield run
    logger.setLevel(level)  # the benchmark lowers it


def test_figures_are_those_of_the_method(run, tmp_path):
    said = run("--only", "pop", "knn")
    folder = tmp_path / "data/elsewhere"
    prepare(DataSettings("ml-100k", n_validation_users=20, n_test_users=50), folder)
    test = load_episodes(folder, "test")
    knn = ItemKNN()
    knn.fit(folder)
    rankings = rank(knn.score(test), test)
    with final_scoring():
        ranks = target_ranks(rankings, test)
    row = next(line for line in said.splitlines() if "Item-kNN" in line)
    for name in recommenders.SHOWN:
        assert f" {float(METRICS[name](ranks).mean()):.3f} " in row
    assert "50 test users" in said
    assert any("chance" in line and " 0.454 " in line for line in said.splitlines())
    assert "LightGCN" not in said


def test_what_is_wrong_is_said_in_a_sentence(run, capsys):
    with pytest.raises(SystemExit, match="2"):
        run("--only", "pop", "--n_test_users", "100000")
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert "100000" in sentence
