"""The embedded default for real: MovieLens-100K and SmolLM2 on a handful of users."""

from __future__ import annotations

import json

import pytest
import yaml
from cli_setup import ROOT

from data_prep.prepare import prepare
from rpp.cli import main
from rpp.data.datamodule import EpisodeDataModule
from rpp.data.episodes import load_episodes
from rpp.llms.tuned import left_out, n_learnt_from
from rpp.types import HELD_OUT

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("no_drawing")]


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
        "data.n_train_users": 3,
        "data.n_validation_users": 2,
        "data.n_test_users": 2,
        "data.batch_size": 3,
        "data.n_candidates": 5,
        "data.lightgcn.n_epochs": 1,
        "model.n_static_prompts": 1,
        "model.history_lengths": "[1, 4]",
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
    assert again["rows"] == record["rows"]
    main(command("predict", real))
    rows = (real / "results/ml-100k/predictions.jsonl").read_text().splitlines()
    assert len(rows) == 2
    assert "I have watched these movies" in json.loads(rows[0])["prompt"]
    assert "2 test users" in capsys.readouterr().out


@pytest.mark.parametrize("file", ["conf/rpp.yaml", "conf/four_patterns.yaml", "conf/compare.yaml"])
def test_the_adapter_has_not_learnt_from_those_who_are_held_out(real, file):
    default, chosen = (
        yaml.safe_load((real / name).read_text()) for name in ("conf/rpp.yaml", file)
    )
    adapter = (default | chosen)["environment"]["llm"]["init_args"]["adapter"]
    users = chosen.get("data", default["data"])
    data = EpisodeDataModule(**default["data"]["init_args"] | users["init_args"])
    prepare(data.settings, data.folder)
    held_out = [
        episode.user_id for split in HELD_OUT for episode in load_episodes(data.folder, split)
    ]
    assert "ml-100k" in left_out(adapter)
    assert n_learnt_from(adapter, "ml-100k", held_out) == 0
    everyone = [str(user) for user in range(1, 944)]
    assert n_learnt_from(adapter, "ml-100k", everyone) == 444
