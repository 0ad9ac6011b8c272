"""What a run prints at its start."""

from __future__ import annotations

import re
import subprocess
import sys

import yaml
from cli_setup import ROOT, command
from helpers import PEFT
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from rpp import assets


@PEFT
def test_a_start_prints_no_message_that_a_user_can_do_nothing_about(here, tiny_llm_folder):
    """It once told of a CPU kernel that cannot be loaded, and of a name that will go away."""
    network = AutoModelForCausalLM.from_pretrained(tiny_llm_folder)
    get_peft_model(network, LoraConfig(task_type="CAUSAL_LM")).save_pretrained(here / "adapter")
    llm = {
        "class_path": "rpp.llms.huggingface.HuggingFaceLanguageModel",
        "init_args": {"model": str(tiny_llm_folder), "adapter": str(here / "adapter")},
    }
    environment = {"llm": llm, "decoding": "likelihood", "show_candidates": False}
    (here / "real.yaml").write_text(yaml.safe_dump({"environment": environment}))
    line = [sys.executable, str(ROOT / "train.py"), *command("fit", "--config", "real.yaml")]
    run = subprocess.run(
        [*line, "--trainer.fast_dev_run", "true"], cwd=here, capture_output=True, text=True
    )
    printed = run.stdout + run.stderr
    assert run.returncode == 0, printed
    assert "Budget: " in printed
    assert not re.search(r"[Ww]arn|kernel|deprecated|Failed", printed), printed


def test_the_conversion_of_the_embedded_model_shows_no_bar(capsys):
    """The bar of the tensors heeded nothing and wrote over the line that says what is going on."""
    from transformers import modeling_gguf_pytorch_utils as gguf

    with assets._without_bars():
        assert list(gguf.tqdm([1, 2], desc="tensors")) == [1, 2]
    assert capsys.readouterr().err == ""
    assert list(gguf.tqdm([1, 2], desc="tensors")) == [1, 2]
    assert "tensors" in capsys.readouterr().err
