"""The embedded default for real: MovieLens-100K and SmolLM2 on a handful of users."""

from __future__ import annotations

import json

import pytest
from test_cli import ROOT

from rpp.cli import main

pytestmark = pytest.mark.real


@pytest.fixture
def real(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])  # arguments are given in the call
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/adapters").symlink_to(ROOT / "checkpoints/adapters")
    return tmp_path


def command(subcommand, folder):
    small = {
        "data.n_train_users": 6,
        "data.n_validation_users": 4,
        "data.n_test_users": 4,
        "data.batch_size": 6,
        "model.n_steps": 2,
        "model.n_static_prompts": 2,
        "trainer.max_epochs": 1,
        "environment.cache_dir": str(folder / "replies"),
    }
    options = [word for key, value in small.items() for word in (f"--{key}", str(value))]
    return [subcommand, "--config", "conf/rpp.yaml", *options]


def test_fit_test_and_predict_with_smollm2(real, capsys):
    main(command("fit", real))
    main(command("test", real))
    record = json.loads((real / "results/ml-100k/results.json").read_text())
    assert record["counters"]["failed"] == 0
    assert record["counters"]["calls"] > 0
    assert record["environment"]["decoding"] == "likelihood"
    main(command("test", real))  # every reply is known by now
    again = json.loads((real / "results/ml-100k/results.json").read_text())
    assert again["counters"]["calls"] == 0
    assert again["table"] == record["table"]
    main(command("predict", real))
    rows = (real / "results/ml-100k/predictions.jsonl").read_text().splitlines()
    assert len(rows) == 4
    assert "I have watched these movies" in json.loads(rows[0])["prompt"]
    assert "4 test users" in capsys.readouterr().out
