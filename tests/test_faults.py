"""Faults amid a fit: what was paid for is kept, checkpoints are whole, the next run ends alike."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_setup import command
from faulty_model import PAID, spoiled_writing
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from rpp.cli import run
from rpp.runs import resolve_checkpoint

FOLDER = Path("checkpoints/ml-100k")
MODEL = ("--environment.llm", "faulty_model.Paid", "--environment.cache_dir", "replies")


def paid():
    return PAID.read_text().split() if PAID.exists() else []


def numbers():
    record = json.loads(Path("results/ml-100k/results.json").read_text())
    return record["rows"], record["inference_steps"], record["static_prompt"]


def fit_and_test(*options):
    run(command("fit", *MODEL, *options))
    run(command("test", *MODEL))


UNDISTURBED = {}
"""Numbers, prompts paid for and checkpoints of a run without a fault, made by the first test."""


@pytest.fixture
def undisturbed(here, no_drawing):
    if not UNDISTURBED:
        fit_and_test()
        files = {path.name: path.read_bytes() for path in FOLDER.glob("*.ckpt")}
        UNDISTURBED.update(numbers=numbers(), paid=sorted(paid()), files=files)
        for path in (PAID, *Path("replies").iterdir(), *Path("results/ml-100k").iterdir()):
            path.unlink()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, content in UNDISTURBED["files"].items():  # those of a former fit
        (FOLDER / name).write_bytes(content)
    return UNDISTURBED


def fail(fault, where, at, monkeypatch):
    """A fit with a fault; what can be killed is a process of its own."""
    llm = "--environment.llm"
    options = (f"{llm}.fault", fault, f"{llm}.at", str(at)) if where == "asking" else ()
    line = command("fit", *MODEL, *options)
    if fault == "killed":
        script = str(Path(__file__).with_name("faulty_model.py"))
        done = subprocess.run([sys.executable, script, where, str(at), *line], check=False)
        assert done.returncode == -signal.SIGKILL
        return
    with monkeypatch.context() as patched:
        if where == "writing":
            patched.setattr(TorchCheckpointIO, "save_checkpoint", spoiled_writing(fault, at))
        with pytest.raises(SystemExit):
            run(line)


@pytest.mark.parametrize(
    ("fault", "where", "at"),
    [
        ("gone", "asking", 10),  # at the first of the second epoch
        *(pytest.param("gone", "asking", at, marks=pytest.mark.slow) for at in (1, 4)),
        *(pytest.param("full", "writing", at, marks=pytest.mark.slow) for at in (1, 2, 3)),
        *(pytest.param("killed", "asking", at, marks=pytest.mark.slow) for at in (1, 4, 9)),
        *(pytest.param("killed", "writing", at, marks=pytest.mark.slow) for at in (1, 2, 3)),
    ],
)
def test_after_a_fault_the_next_run_ends_like_an_undisturbed_one(
    undisturbed, monkeypatch, fault, where, at
):
    fail(fault, where, at, monkeypatch)
    for name in ("best", "last", "best.previous", "last.previous"):
        if (FOLDER / f"{name}.ckpt").exists():  # whole
            resolve_checkpoint("test", str(FOLDER / f"{name}.ckpt"), "ml-100k")
    aside = (FOLDER / "best.previous.ckpt").exists()
    former = FOLDER / f"best{'.previous' if aside else ''}.ckpt"
    assert former.read_bytes() == undisturbed["files"]["best.ckpt"]
    finished_an_epoch = aside and (FOLDER / "last.ckpt").exists()
    fit_and_test(*(("--ckpt_path", "last") if finished_an_epoch else ()))
    assert numbers() == undisturbed["numbers"]
    assert sorted(paid()) == undisturbed["paid"]  # no prompt twice, none too few


@pytest.mark.slow
def test_a_truncated_cache_costs_calls_and_no_numbers(undisturbed):
    fit_and_test()
    path = Path("replies/replies.sqlite")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.warns(UserWarning, match="reply cache .* (is damaged|cannot be read)"):
        fit_and_test()
    assert numbers() == undisturbed["numbers"]
    assert set(paid()) == set(undisturbed["paid"])
