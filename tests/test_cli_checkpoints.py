"""Checkpoints of the command line: resumed, repeated, kept, refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch
from cli_setup import ROOT, command, weights

from rpp.cli import main, run
from rpp.types import InputError

pytestmark = pytest.mark.usefixtures("no_drawing")


@pytest.mark.parametrize("ablation", [None, "ppo_1", "ppo_4"])
def test_a_resumed_run_ends_with_the_same_numbers(here, ablation):
    overlay = ("--config", f"conf/ablations/{ablation}.yaml") if ablation else ()
    whole, halves = (
        (*overlay, "--name", name, "--trainer.max_epochs") for name in ("whole", "halves")
    )
    main(command("fit", *whole, "4"))
    main(command("fit", *halves, "2"))
    main(command("fit", *halves, "4", "--ckpt_path", "last"))
    whole, halves = (weights(here / f"checkpoints/{n}/last.ckpt") for n in ("whole", "halves"))
    assert whole.keys() == halves.keys()
    for name, value in whole.items():
        assert torch.equal(value, halves[name]), name


def test_training_changes_gru_projection_and_every_agent_and_saves_them(fitted):
    main(command("fit", "--name", "longer", "--trainer.max_epochs", "2"))
    first, second = (
        weights(fitted / f"checkpoints/{name}/last.ckpt") for name in ("ml-100k", "longer")
    )
    assert any("gru" in name for name in first)
    assert any("projection" in name for name in first)
    for name, value in first.items():
        if name not in ("inference_steps", "static_actions", "static_length"):
            assert not torch.equal(value, second[name]), name


def test_results_repeat_in_a_new_run_from_the_checkpoint(fitted):
    main(command("test"))
    first = json.loads((fitted / "results/ml-100k/results.json").read_text())["rows"]
    main(command("test"))
    assert json.loads((fitted / "results/ml-100k/results.json").read_text())["rows"] == first


def test_a_fresh_process_recommends_what_the_fitted_one_does(here):
    """From the checkpoint alone: nothing that matters is left in memory."""
    fitted = main(command("fit", "--trainer.max_epochs", "1"))
    batches = fitted.trainer.predict(fitted.model, fitted.datamodule)
    expected = [row for batch in batches for row in batch]
    (here / "results/ml-100k/predictions.jsonl").unlink()
    line = [sys.executable, str(ROOT / "train.py"), *command("predict")]
    subprocess.run(line, check=True, cwd=here, capture_output=True)
    lines = (here / "results/ml-100k/predictions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == expected


def test_a_new_run_puts_the_checkpoints_of_the_former_one_aside(fitted):
    former = (fitted / "checkpoints/ml-100k/last.ckpt").read_bytes()
    main(command("fit", "--trainer.max_epochs", "1", "--model.policy_seed", "7"))
    assert (fitted / "checkpoints/ml-100k/last.previous.ckpt").read_bytes() == former
    assert (fitted / "checkpoints/ml-100k/last.ckpt").read_bytes() != former


def test_a_checkpoint_of_another_data_set_or_patterns_file_is_refused(fitted):
    with pytest.raises(InputError, match="another data set"):
        main(command("test", "--data.seed", "5"))
    text = (ROOT / "conf/patterns/movies.yaml").read_text()
    (fitted / "own.yaml").write_text(text.replace("seasoned critic", "projectionist"))
    with pytest.raises(InputError, match="another patterns"):
        main(command("test", "--model.patterns", "own.yaml"))
    with pytest.raises(InputError, match="another prompt encoding"):
        main(command("test", "--model.prompt_encoding", "whole"))


def test_more_test_users_fit_the_same_checkpoint(fitted):
    main(command("test", "--data.n_test_users", "40"))
    record = json.loads((fitted / "results/ml-100k/results.json").read_text())
    assert record["n_users"] == 40


def test_a_damaged_checkpoint_is_named(fitted, capsys):
    path = fitted / "checkpoints/ml-100k/best.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SystemExit):
        run(command("test"))
    assert re.search(r"best\.ckpt.*(damaged|cannot be read)", capsys.readouterr().err)


def test_the_language_model_is_in_no_checkpoint(here, tiny_llm_folder):
    class_path = "rpp.llms.huggingface.HuggingFaceLanguageModel"
    options = ["--environment.llm", class_path, "--environment.llm.model", str(tiny_llm_folder)]
    main(
        command(
            "fit", *options, "--trainer.max_epochs", "1", "--environment.decoding", "likelihood"
        )
    )
    names = weights(here / "checkpoints/ml-100k/last.ckpt")
    assert names
    assert all(
        name.startswith(("agents.", "states.", "inference_steps", "static_")) for name in names
    )
