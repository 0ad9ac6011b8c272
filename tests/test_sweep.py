"""Sweeps: one comparison per value of a setting, one table and one chart of all."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
import yaml
from cli_setup import ROOT

from rpp import charts, sweep
from rpp.metrics import METRICS, Interval
from rpp.types import InputError, LanguageModelStop

SWEEPS = sorted(path.stem for path in (ROOT / "conf/sweeps").glob("*.yaml"))
CANDIDATES = "conf/sweeps/candidates.yaml"
CHEAP = ("--methods", "[manual prompt, random policy]")

NEEDED = ("Manual", "Enumeration", "RandomPolicy", "RPP", "RPP+")
"""What the sweeps of conf/ and the tests compare; ``test_comparison.py`` runs the whole file."""


def name_of(method):
    """What a configuration calls a method, or its class."""
    return method.get("init_args", {}).get("name", method["class_path"].rpartition(".")[2])


@pytest.fixture
def base(here: Path, tiny_bert_folder):
    """Options for a comparison of few made-up users by a control with a tiny prompt encoder."""
    small = yaml.safe_load((here / "small.yaml").read_text())
    config = yaml.safe_load((ROOT / "conf/compare.yaml").read_text())
    compared = config["model"]["init_args"]
    compared["recommenders"] = compared["recommenders"][:2]  # each costs every parse of the file
    compared["methods"] = [each for each in compared["methods"] if name_of(each) in NEEDED]
    for method in compared["methods"]:
        options = method.get("init_args", {})
        if "learner" in options:
            options["max_epochs"] = 1
            if not options["learner"]["class_path"].endswith("RewardModelLearner"):
                options["learner"]["init_args"]["prompt_encoder"] = str(tiny_bert_folder)
    config["data"]["init_args"] |= small["data"]["init_args"]
    config["environment"] = {
        "llm": {
            "class_path": "rpp.llms.controls.ControlLanguageModel",
            "init_args": {"behaviour": "answers_at_random"},
        },
        "decoding": "generate",
        "cache_dir": None,
        "refiner": "same",
    }
    config["trainer"] |= {"accelerator": "cpu", "enable_progress_bar": False}
    (here / "base.yaml").write_text(yaml.safe_dump(config))
    return ("--configs", "[base.yaml]")


@pytest.fixture
def runs(monkeypatch):
    """Names of the comparisons that were run."""
    started = []

    def run(args):
        started.append(next(word for word in args if word.startswith("--name=")))
        return real(args)

    real = sweep.run
    monkeypatch.setattr(sweep, "run", run)
    return started


@pytest.fixture
def figures(monkeypatch):
    """What was drawn."""
    drawn = []
    real = charts.by_value
    monkeypatch.setattr(charts, "by_value", lambda *a: drawn.append(real(*a)) or drawn[-1])
    return drawn


def table(here, name):
    return pl.read_csv(here / "results" / name / "sweep.csv")


def test_a_sweep_over_candidates(here, base, runs, figures, capsys):
    """Chance is that of each number of candidates; what is finished is not run again."""
    args = ["--config", CANDIDATES, "--values", "[5, 10]", *base, *CHEAP]
    sweep.main(args)
    folder = here / "results/sweeps/candidates"
    assert runs == ["--name=sweeps/candidates/5", "--name=sweeps/candidates/10"]
    assert (folder / "sweep.png").stat().st_size > 10_000
    written = table(here, "sweeps/candidates")
    assert written["data.init_args.n_candidates"].to_list() == [5] * 3 + [10] * 3
    assert written["method"].to_list() == ["manual prompt", "random policy", "chance"] * 2
    chances = written.filter(pl.col("method") == "chance")["ndcg@10"].to_list()
    assert chances == pytest.approx([0.590, 0.454], abs=5e-4)
    for value in (5, 10):
        own = pl.read_csv(folder / f"{value}/comparison.csv")
        ours = written.filter(pl.col("data.init_args.n_candidates") == value)
        names = ["method", "ndcg@1", "ndcg@10", "ndcg@10_low", "ndcg@10_high", "hr@5"]
        assert ours.select(names).equals(own.select(names))
    axis = figures[-1].axes[0]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == [
        "chance", "manual prompt", "random policy",
    ]  # fmt: skip
    assert axis.lines[-1].get_ydata() == pytest.approx([0.590, 0.454], abs=5e-4)
    vectors = [
        here / f"data/sweeps/candidates/{n}/custom/collaborative.safetensors" for n in (5, 10)
    ]
    assert vectors[0].stat().st_mtime_ns == vectors[1].stat().st_mtime_ns  # trained once

    (folder / "sweep.csv").unlink()
    sweep.main(args)
    assert len(runs) == 2
    assert table(here, "sweeps/candidates").equals(written)
    assert "candidates 5 was finished before" in capsys.readouterr().err


@pytest.fixture
def pretend(here, monkeypatch):
    """In the place of a comparison: one of a row, whatever is asked; what it was asked."""
    made = SimpleNamespace(args=[], complete=True, results=["RPP"], folder=Path("results"))
    score = {"mean": 0.5, "low": 0.4, "high": 0.6}
    rows = [{"name": "RPP", "scores": dict.fromkeys(METRICS, score)}]

    def run(args):
        made.args.append(args)
        folder = made.folder / args[-5].removeprefix("--name=")
        folder.mkdir(parents=True, exist_ok=True)
        record = {"rows": rows, "data": {"settings": {"n_candidates": 10}}}
        (folder / "comparison.json").write_text(json.dumps(record))
        return SimpleNamespace(model=made)

    monkeypatch.setattr(sweep, "run", run)
    (here / "base.yaml").write_text("a: 1\n")
    return made


SMALL = ("--config", CANDIDATES, "--values", "[5]", "--configs", "[base.yaml]")


def test_what_a_comparison_is_told(pretend):
    sweep.main([*SMALL, "--configs+=small.yaml", "--name", "x", "--methods", "[a, b c]"])
    assert pretend.args == [
        ["test", "--config=base.yaml", "--config=small.yaml", "--name=x/5",
         "--data.init_args.data_dir=data/x/5", '--model.init_args.only=["a", "b c"]',
         "--model.init_args.reference=a", "--data.init_args.n_candidates=5"]
    ]  # fmt: skip


def test_other_settings_are_run_again(here, pretend, capsys):
    sweep.main(SMALL)
    (here / "base.yaml").write_text("a: 2\n")
    sweep.main(SMALL)
    assert "candidates 5 was finished with other settings" in capsys.readouterr().err
    sweep.main([*SMALL, "--methods", "[RPP]"])
    assert len(pretend.args) == 3
    sweep.main([*SMALL, "--methods", "[RPP]"])
    assert len(pretend.args) == 3
    sweep.main([*SMALL, "--methods", "[RPP]", "--again"])
    assert len(pretend.args) == 4


def test_other_sentences_or_another_adapter_are_run_again(here, pretend, capsys):
    """Also sentences that a patterns file is based on."""
    (here / "p").mkdir()
    (here / "p/more.yaml").write_text("based_on: base.yaml\n")
    (here / "p/base.yaml").write_text("role: [one]\n")
    (here / "adapter").mkdir()
    (here / "adapter/adapter_config.json").write_text("{}")
    (here / "adapter/adapter_model.safetensors").write_bytes(b"1")
    (here / "base.yaml").write_text("model: {patterns: p/more.yaml, llm: [adapter, x]}\n")
    sweep.main(SMALL)
    sweep.main(SMALL)
    assert len(pretend.args) == 1
    (here / "p/base.yaml").write_text("role: [two]\n")
    sweep.main(SMALL)
    (here / "adapter/adapter_model.safetensors").write_bytes(b"2")
    sweep.main(SMALL)
    assert len(pretend.args) == 3
    (here / "adapter/adapter_config.json").write_text('{"lora_alpha": 8}')
    sweep.main(SMALL)
    (here / "base.yaml").write_text("model: {patterns: p/more.yaml, llm: [adapter, model]}\n")
    sweep.main(SMALL)
    (here / "model").mkdir()
    (here / "model/config.json").write_text("{}")
    sweep.main(SMALL)
    assert len(pretend.args) == 6


def test_a_spent_budget_ends_a_sweep(pretend, monkeypatch):
    """No other value would get past it."""

    def run(args):
        pretend.args.append(args)
        raise SystemExit(2) from LanguageModelStop("no money left")

    monkeypatch.setattr(sweep, "run", run)
    with pytest.raises(SystemExit):
        sweep.run_sweep(sweep.Sweep("x", "seed_everything", [1, 2], ["RPP"], "seed", ["base.yaml"]))
    assert len(pretend.args) == 1


def test_a_value_without_all_methods_is_shown_and_run_again(here, pretend, capsys):
    pretend.complete = False
    sweep.main(SMALL)
    assert "candidates 5 lacks methods or users" in capsys.readouterr().err
    assert table(here, "sweeps/candidates")["method"].to_list() == ["RPP", "chance"]
    sweep.main(SMALL)
    assert len(pretend.args) == 2


def test_a_value_without_any_method_does_not_show_a_former_result(here, pretend, capsys):
    sweep.main(SMALL)
    pretend.complete, pretend.results = False, []
    with pytest.raises(SystemExit):
        sweep.main([*SMALL, "--again"])
    assert "candidates 5 has no results, because no method could" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        sweep.main(SMALL)
    assert len(pretend.args) == 3


def test_a_configuration_that_writes_elsewhere_is_refused(pretend, capsys):
    pretend.folder = Path("elsewhere")
    with pytest.raises(SystemExit):
        sweep.main(SMALL)
    assert "must have the callback ComparisonReport" in capsys.readouterr().err


def test_a_value_that_fails_costs_no_other(here, base, runs, no_drawing, capsys):
    args = ["--config", "conf/sweeps/users.yaml", "--values", "[100000, 12]", *base, *CHEAP]
    with pytest.raises(SystemExit) as stop:
        sweep.main(args)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert "(n_train_users 100000" in printed
    assert "training users 100000 failed for the reason above" in printed
    assert printed.endswith("Without results: training users 100000\n")
    assert table(here, "sweeps/users")["data.init_args.n_train_users"].to_list() == [12] * 3
    with pytest.raises(SystemExit):
        sweep.main(args)
    assert len(runs) == 2 + 1  # the one without results is tried again


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_of_conf(here, base, no_drawing, name):
    """With all methods of the file at two values."""
    values = {"users": [4, 8], "candidates": [5, 20], "sentences": [1, 4]}[name]
    sweep.main(["--config", f"conf/sweeps/{name}.yaml", "--values", str(values), *base])
    given = yaml.safe_load((ROOT / f"conf/sweeps/{name}.yaml").read_text())
    assert given["configs"] == ["conf/compare.yaml"]
    written = table(here, given["name"])
    assert written["method"].to_list() == [*given["methods"], "chance"] * 2
    assert written[given["setting"]].unique(maintain_order=True).to_list() == values


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--values", "[]"), "error: values is empty"),
        (("--configs", "[nowhere.yaml]"), "error: there is no configuration file nowhere.yaml"),
        (("--methods", "[GPT]"), "there is no method 'GPT': name some of Pop, "),
        (("--setting", "data.init_args.n_candidate"), "n_candidate"),
        (("--valus", "[1]"), "valus"),
    ],
)
def test_mistakes_end_in_one_sentence(here, base, capsys, options, message):
    with pytest.raises(SystemExit) as stop:
        sweep.main(["--config", CANDIDATES, "--values", "[5]", *base, *options])
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed


def test_a_sweep_that_is_interrupted_ends(pretend, monkeypatch):
    """After Ctrl-C Lightning exits with code 1, which is no failed value."""
    monkeypatch.setattr(sweep, "run", lambda args: (_ for _ in ()).throw(SystemExit(1)))
    with pytest.raises(SystemExit) as stop:
        sweep.run_sweep(sweep.Sweep("x", "seed_everything", [1, 2], ["RPP"], "seed", ["base.yaml"]))
    assert stop.value.code == 1


def test_chart_of_one_value_and_of_a_gap():
    scores = {
        "a": {1: Interval(0.5, 0.4, 0.6), 3: Interval(0.6, 0.5, 0.7)},
        "b": {3: Interval(1, 1, 1)},
    }
    axis = charts.by_value(scores, {1: 0.454, 3: 0.454}, "sentences").axes[0]
    assert [list(bar.lines[0].get_ydata()) for bar in axis.containers] == [[0.5, 0.6], [1]]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "3"]
    assert axis.get_xlabel() == "sentences"


def test_a_sweep_names_what_it_is_over(here):
    with pytest.raises(InputError, match="methods is empty"):
        sweep.Sweep("x", "seed_everything", [1], [], "seed")
