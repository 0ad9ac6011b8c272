"""Tuning from the command line: every configuration, and what is refused."""

from __future__ import annotations

import pytest
import torch
import yaml
from cli_setup import ROOT
from helpers import PEFT

from rpp.cli import main, run

pytestmark = PEFT


@pytest.fixture
def here(tmp_path, monkeypatch, custom_csv, wide_llm_folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    small = {
        "name": "small",
        "model": {
            "init_args": {"llm": {"init_args": {"model": str(wide_llm_folder)}}, "start": None}
        },
        "data": {
            "init_args": {
                "name": "custom",
                "custom": {
                    "interactions": str(custom_csv.interactions),
                    "titles": str(custom_csv.titles),
                },
                "n_train_users": 6,
                "n_validation_users": 6,
                "n_test_users": 6,
                "n_folds": 2,
            }
        },
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "limit_train_batches": 2,
            "enable_progress_bar": False,
        },
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    return tmp_path


def test_the_papers_alpaca(here):
    """Rankings by title on the overlay's own settings; batches of 8, 16 of them an update."""
    options = ["--config", "conf/llm_tuning/ml-100k.yaml", "--config", "conf/paper/alpaca.yaml"]
    made = main(["fit", *options, "--config", "small.yaml", "--trainer.precision", "32"])
    assert (here / "checkpoints/adapters/small/adapter_model.safetensors").is_file()
    assert made.model.lora.target_modules == {"q_proj", "v_proj"}
    assert made.datamodule.display.show_candidates
    assert made.datamodule.batch_size * made.trainer.accumulate_grad_batches == 128


def test_a_model_in_parts_is_not_tuned(here, capsys):
    options = ["--config", "small.yaml", "--model.llm.device_map", "auto"]
    with pytest.raises(SystemExit):
        run(["fit", "--config", "conf/llm_tuning/ml-1m.yaml", *options])
    assert "a model is tuned on one device: " in capsys.readouterr().err


def test_an_adapter_to_start_from_that_is_not_there(here, capsys):
    options = ["--config", "small.yaml", "--model.start", "checkpoints/adapters/none"]
    with pytest.raises(SystemExit):
        run(["fit", "--config", "conf/llm_tuning/ml-1m.yaml", *options])
    assert "there is no adapter in checkpoints/adapters/none: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (ROOT / "conf/llm_tuning").glob("*.yaml"))
)
def test_every_configuration_runs_and_its_checkpoint_is_small(here, hasty_sequences, name):
    main(["fit", "--config", f"conf/llm_tuning/{name}.yaml", "--config", "small.yaml"])
    assert (here / "checkpoints/adapters/small/adapter_model.safetensors").is_file()
    assert (here / "checkpoints/adapters/small/tuning.json").is_file()
    checkpoint = torch.load(here / "checkpoints/small/last.ckpt", weights_only=True)
    assert all("lora_" in key for key in checkpoint["state_dict"])
    main(
        ["fit", "--config", f"conf/llm_tuning/{name}.yaml", "--config", "small.yaml",
         "--ckpt_path", "last", "--trainer.max_epochs", "2"]
    )  # fmt: skip
