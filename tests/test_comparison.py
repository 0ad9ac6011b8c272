"""The comparison's table, what ends it early, and its command."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
import yaml
from comparison_setup import compare, knows
from comparison_setup import users as users
from lightning import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from pipeline import environment, trainer
from polars.testing import assert_frame_equal
from raw_files import games

from data_prep.prepare import DataSettings, prepare
from rpp.baselines.popularity import Popularity
from rpp.cli import main, run
from rpp.comparison.base import PromptMethod
from rpp.comparison.comparison import Comparison
from rpp.comparison.references import Enumeration, Manual, RandomPolicy
from rpp.comparison.report import make_rows
from rpp.llms.controls import answers_at_random
from rpp.ranker import Counters
from rpp.results.render import cells
from rpp.results.rows import Expense, as_frame
from rpp.types import InputError, LanguageModelStop


class Breaks(Manual):
    """Fails as nobody foresaw."""

    def __init__(self):
        super().__init__(name="breaks")

    def learn(self, task):
        raise RuntimeError("out of memory")


def test_a_fault_in_a_method_loses_no_other(users, tmp_path):
    with pytest.raises(RuntimeError, match="out of memory"):
        compare(users, tmp_path, [Manual(), Breaks(), RandomPolicy()])
    table = pl.read_csv(tmp_path / "results/unfinished/comparison.csv")
    assert table["method"].to_list() == ["manual prompt", "chance"]
    compare(users, tmp_path, [Manual(), RandomPolicy()])
    assert not (tmp_path / "results/unfinished").exists()


def test_rows_are_what_the_methods_ranked(users, tmp_path):
    made = compare(users, tmp_path, [Manual(), RandomPolicy()], knows(users))
    manual, other = make_rows(made, made.target_ranks(), "ml-1m")
    assert manual.scores["ndcg@1"].mean == other.scores["ndcg@1"].mean == 1
    assert manual.gain is None
    assert other.gain is not None
    assert other.gain.mean == 0
    assert other.p_value == 1
    assert manual.valid == 0  # it names the target alone
    assert manual.expense is not None
    assert manual.expense.prompts == 60
    assert manual.published == (0.03, 0.35, 0.41)
    assert cells([replace(other, p_value=0.0004)], 10)[1][0][8] == "<.001"
    assert cells([replace(other, p_value=0.03)], 10)[1][0][8] == ".030"
    frame = as_frame([manual, other], 10)
    assert frame["method"].to_list() == ["manual prompt", "random policy", "chance"]
    assert frame["ndcg@1"].to_list() == [1, 1, 0.1]
    written = pl.read_csv(tmp_path / "results/comparison.csv")
    shown = [name for name in frame.columns if frame[name].null_count() < frame.height]
    expected = as_frame(make_rows(made, made.target_ranks(), ""), 10).select(shown)
    assert_frame_equal(written.select(shown), expected, check_dtypes=False)


def test_costs_are_differences():
    before, after = Counters(calls=3, cache_hits=2), Counters(7, 12, 100, 20, 2.5)
    assert Expense.between(before, after, 1.5) == Expense(14, 4, 100, 20, 2.5, 1.5)


class Fails(PromptMethod):
    """Cannot be run on these data."""

    name = "fails"

    def learn(self, task):
        raise InputError("there is no manual prompt: write one")

    def max_calls(self, task, n_users):
        return 0


def test_a_method_that_cannot_be_run_costs_no_other(users, tmp_path, capsys):
    made = compare(users, tmp_path, [Manual(), Fails(), RandomPolicy()])
    assert [result.method.name for result in made.results] == ["manual prompt", "random policy"]
    printed = capsys.readouterr()
    assert "Left out: fails: there is no manual prompt: write one." in printed.out
    record = json.loads((tmp_path / "results/comparison.json").read_text())
    assert record["not_run"] == {"fails": "there is no manual prompt: write one"}


def test_a_budget_ends_it_with_the_methods_that_are_through(users, tmp_path, capsys):
    with pytest.raises(LanguageModelStop, match="max_calls"):
        compare(users, tmp_path, [Manual(), Enumeration(8)], answers_at_random, max_calls=100)
    printed = capsys.readouterr().out
    assert "Budget: at most 100 calls" in printed
    assert "Stopped before these had ranked: best of 8 static." in printed
    record = json.loads((tmp_path / "results/unfinished/comparison.json").read_text())
    assert [row["name"] for row in record["rows"]] == ["manual prompt"]
    assert record["not_reached"] == ["best of 8 static"]


class Interrupted(Fails):
    """The user loses patience."""

    def learn(self, task):
        raise KeyboardInterrupt


class FitInterrupted(Fails):
    """The user loses patience while a policy is fitted: Lightning makes a SystemExit of it."""

    def learn(self, task):
        class Impatient(BoringModel):
            def training_step(self, batch, batch_idx):
                raise KeyboardInterrupt

        fit = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False).fit  # fmt: skip
        with torch.inference_mode(False), torch.enable_grad():
            fit(Impatient())


@pytest.mark.parametrize("method", [Interrupted, FitInterrupted])
def test_an_interrupt_ends_it_with_the_methods_that_are_through(
    users, tmp_path, capsys, method, monkeypatch
):
    """The table of a former run stays whole."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # Lightning's: ignore the next ones
    compare(users, tmp_path, [Manual(), RandomPolicy()])
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        compare(users, tmp_path, [Manual(), method()])
    assert "manual prompt" in capsys.readouterr().out
    for folder, n_methods in (("results", 2), ("results/unfinished", 1)):
        table = pl.read_csv(tmp_path / folder / "comparison.csv")
        assert table["method"].to_list()[:-1] == ["manual prompt", "random policy"][:n_methods]


def test_what_is_no_comparison_is_refused():
    for options, sentence in (
        ({}, "there is nothing to compare"),
        ({"methods": [Manual(), Manual()]}, "two methods are called 'manual prompt'"),
        ({"methods": [Manual()], "reference": "RPP"}, "the reference 'RPP' is not compared"),
    ):
        with pytest.raises(InputError, match=sentence):
            Comparison(**options)


@pytest.mark.parametrize(
    ("only", "reference"),
    [
        (["random policy", "best of 8 static"], "best of 8 static"),
        (["random policy", "Pop"], "random policy"),
        (["Pop"], "Pop"),
        (["random policy", "manual prompt"], "manual prompt"),
    ],
)
def test_a_few_methods_are_compared_with_one_that_is_there(capsys, only, reference):
    """``only`` once failed for want of the reference."""
    methods = [RandomPolicy(), Manual(), Enumeration(8), Enumeration(64)]
    made = Comparison(recommenders=[Popularity()], methods=methods, only=only)
    assert made.reference == reference
    assert f"Differences are to {reference}: best of 64" in capsys.readouterr().err


def test_profiles_that_the_data_do_not_know_are_refused(users, tmp_path):
    """They were once left out of every prompt without a word."""
    made = Comparison(
        "conf/patterns/movies_profile.yaml", methods=[Manual()], reference=Manual.name
    )
    with pytest.raises(
        InputError, match=r"prompts tell the user's age, but the data set 'made-up'"
    ):
        trainer(tmp_path, environment()).test(made, users, verbose=False)


@pytest.mark.real
def test_the_command_of_conf_compare(here: Path, hasty_sequences, request, capsys):
    """Every method of the files; a second run fits nothing and prints the same."""
    source = DataSettings("games", str(games(here / "raw")), min_interactions=0,
                          n_train_users=4, n_validation_users=4, n_test_users=4)  # fmt: skip
    prepare(source, here / "data/games")
    files = ("conf/compare.yaml", "conf/compare_text.yaml", "conf/compare_refined.yaml", "few.yaml")
    args = ["test", *(word for file in files for word in ("--config", file))]
    small = yaml.safe_load((here / "small.yaml").read_text())
    (here / "few.yaml").write_text(json.dumps(FEW | {"data": small["data"]}))
    main(args)
    said = capsys.readouterr()
    first = said.out
    for name in ("Pop", "SASRec", "UniSRec", "manual prompt", "best of 64 static", "RPP+", "PPO-1"):
        assert f"\n{name} " in first, name
    for pattern in ("role", "history", "reasoning", "format"):
        assert f"\nRPP, {pattern} alone " in first
        assert f"\nRPP+, {pattern} alone " in first
    assert "Left out: VQ-Rec: " in first  # its 256 codes need as many titles
    # RPP's first state is the recommender's vectors
    assert said.err.count("Training LightGCN") == 1
    assert "…" not in first  # nothing is cut off in a narrow terminal
    folder = here / "results/comparison"
    table = pl.read_csv(folder / "comparison.csv")
    assert table["method"][-1] == "chance"
    assert {f"{name}.png" for name in ("comparison", "steps", "positions", "users_by_option")} <= {
        path.name for path in folder.iterdir()
    }
    assert not (here / "config.yaml").exists()  # nothing is logged, so there is no place for it
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 2
    assert 'id="options"' in page
    assert (folder / "comparison.md").read_text().count("\n| RPP") == table[
        "method"
    ].str.starts_with("RPP").sum()
    request.getfixturevalue("no_drawing")
    main(args)
    again = pl.read_csv(folder / "comparison.csv")
    scores = [name for name in table.columns if "@" in name]
    assert again.select("method", *scores).equals(table.select("method", *scores))
    of_rpp = pl.col("method") == "RPP"
    # what the fit took belongs to the method, whichever run has fitted it
    assert again.filter(of_rpp)["prompts"].item() == table.filter(of_rpp)["prompts"].item()


FEW = {
    "environment": {
        "llm": {
            "class_path": "rpp.llms.controls.ControlLanguageModel",
            "init_args": {"behaviour": "answers_at_random"},
        },
        "decoding": "generate",
        "show_candidates": True,
        "refiner": "same",
        "cache_dir": None,
    },
    "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
}


def test_a_comparison_is_not_fitted(here, capsys):
    method = {"class_path": "rpp.comparison.references.Manual"}
    model = {
        "class_path": "rpp.comparison.comparison.Comparison",
        "init_args": {"methods": [method]},
    }
    (here / "few.yaml").write_text(json.dumps(FEW | {"model": model}))
    data = ("--data", "rpp.data.datamodule.EpisodeDataModule", "--data.name", "ml-100k")
    with pytest.raises(SystemExit):
        run(["fit", "--config", "few.yaml", *data])
    assert "run `python train.py test` in place of fit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "name", "sources"),
    [
        (["compare_evidence"], "comparison-evidence", "EASE + Item-kNN"),
        (["compare_graded", "graded"], "custom-graded", "all three"),
    ],
)
def test_the_rows_of_evidence(
    here: Path, no_drawing, hasty_sequences, capsys, files, name, sources
):
    """Sources alone, sums of scores, static evidence; policies are in ``test_overlays.py``."""
    small = yaml.safe_load((here / "small.yaml").read_text())
    (here / "few.yaml").write_text(json.dumps(FEW | {"data": small["data"]}))
    configs = [*(f"conf/{each}.yaml" for each in ("compare", *files)), "few.yaml"]
    own = ["SASRec", "manual, SASRec"] if "graded" in files else ["Item-kNN", "manual, EASE"]
    rows = [*own, "EASE", "manual prompt", f"LM + {sources}", "best static evidence"]
    main(
        ["test", *(word for file in configs for word in ("--config", file)),
         "--model.only", json.dumps(rows)]
    )  # fmt: skip
    said = " ".join(capsys.readouterr().out.split())
    assert "Left out" not in said
    table = pl.read_csv(here / f"results/{name}/comparison.csv")
    assert set(table["method"]) == {*rows, "chance"}
    assert f"LM + {sources}: weights of z-scores" in said
    assert "best static evidence: chosen is '" in said
