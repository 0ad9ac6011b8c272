"""A learner that no file of the project names keeps to the contract, and is used like ours."""

from __future__ import annotations

import json

import polars as pl
import pytest
import torch
import yaml
from cli_setup import ROOT, command
from own_learner import MeanReward
from pipeline import PATTERNS, MadeUpUsers, environment, trainer
from test_learning import REASONING, planted

from rpp.cli import main
from rpp.comparison.policy import Policy
from rpp.metrics import METRICS

pytestmark = pytest.mark.usefixtures("no_drawing")


def test_it_finds_the_planted_sentence(tmp_path):
    users = MadeUpUsers(n_train=200, n_validation=20, n_test=100)
    model = MeanReward(patterns=PATTERNS, n_steps=1)
    run = trainer(tmp_path, environment(planted(users, lambda user: 3)), max_epochs=8)
    run.fit(model, users)
    run.test(model, users, verbose=False)
    assert int(model.greedy(None, 0, users.episodes("test")[:1]).actions[0, REASONING]) == 3
    assert model.test_results.ranks["MeanReward"].tolist() == [1.0] * 100
    random = METRICS["ndcg@10"](model.test_results.ranks["random policy"]).mean()
    assert float(random) < 0.7


def test_several_steps_need_a_later_state(tmp_path):
    users = MadeUpUsers(n_train=4, n_validation=2, n_test=2)
    model = MeanReward(patterns=PATTERNS, n_steps=2)
    run = trainer(tmp_path, environment(""), max_epochs=1)
    with pytest.raises(NotImplementedError, match="MeanReward has no later state: set n_steps"):
        run.fit(model, users)


OWN = {"class_path": "own_learner.MeanReward", "init_args": {"n_steps": 1, "epsilon": 0.4}}


def test_the_command_line_takes_it(here):
    """After rpp.yaml, whose learner has settings that this one has not."""
    (here / "own.yaml").write_text(json.dumps({"name": "own", "model": OWN}))
    options = ("--config", "own.yaml", "--trainer.max_epochs", "1")
    made = main(command("fit", *options)).model
    assert isinstance(made, MeanReward)
    assert (made.epsilon, made.n_steps) == (0.4, 1)
    main(command("test", *options))
    record = json.loads((here / "results/own/results.json").read_text())
    assert record["provenance"]["learner"] == "MeanReward"
    assert "MeanReward, prompts permuted" in {row["name"] for row in record["rows"]}
    main(command("predict", *options))
    assert len((here / "results/own/predictions.jsonl").read_text().splitlines()) == 20


def test_it_stands_in_the_comparison(here):
    small = yaml.safe_load((here / "small.yaml").read_text())
    policy = {"class_path": "rpp.comparison.policy.Policy", "init_args": {"name": "own"}}
    policy["init_args"] |= {"max_epochs": 1, "learner": OWN}
    permuted = {"class_path": "rpp.comparison.policy.PermutedPrompts"}
    permuted["init_args"] = {"policy": policy}
    compared = {"methods": [policy, permuted], "recommenders": [], "reference": "own"}
    del small["model"]
    own = small | {"name": "own", "model": {"init_args": compared}}
    (here / "own.yaml").write_text(json.dumps(own))
    main(["test", "--config", "conf/compare.yaml", "--config", "own.yaml"])
    table = pl.read_csv(here / "results/own/comparison.csv")
    assert table["method"].to_list() == ["own", "own, prompts permuted", "chance"]


def test_cached_weights_are_keyed_by_every_argument():
    """Lists, dictionaries and null once were no part of the key, and stale weights were used."""
    users = MadeUpUsers(n_train=4, n_validation=2, n_test=2)
    settings = [
        {},
        {"epsilon": 0.25},
        {"history_lengths": [1, 4]},
        {"history_lengths": [1, 5]},
        {"learn": ["role"]},
        {"n_sentences": 2},
        {"n_sentences": None, "policy_seed": 1},
    ]
    keys = []
    for options in settings:
        policy = Policy("own", MeanReward(patterns=PATTERNS, n_steps=1, **options))
        policy.learner.build(users, torch.device("cpu"))
        keys.append(policy.metadata(reshuffle=True)["settings"])
    assert len(set(keys)) == len(settings)
    assert json.loads(keys[2])["history_lengths"] == [1, 4]
    assert json.loads(keys[0])["learn"] is None  # a default counts as if it were given
    explicit = MeanReward(patterns=PATTERNS, n_steps=1, learn=None, epsilon=0.5)
    assert (
        Policy("own", explicit).learner.arguments
        == MeanReward(patterns=PATTERNS, n_steps=1).arguments
    )


def test_no_file_of_the_project_names_it():
    for folder in ("src", "conf", "data_prep", "benchmarks"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml"):
                assert "MeanReward" not in path.read_text(encoding="utf-8"), path
