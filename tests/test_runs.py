"""A run's folder of checkpoints, and what a fit refuses before it begins."""

from __future__ import annotations

import errno
import io
import math
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from cli_setup import command, weights
from lightning import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from rpp.cli import main, reporting_mistakes, run
from rpp.learners.rpp import RPP
from rpp.runs import WholeCheckpoints, only_fit, resolve_checkpoint
from rpp.terminal import SafeStream
from rpp.types import InputError


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.ckpt") if not path.name.startswith(".")}


def test_two_fits_of_one_name_at_once_are_refused(tmp_path, monkeypatch):
    """Each once announced the other's weights as its own best."""
    monkeypatch.chdir(tmp_path)
    refused = pytest.raises(InputError, match="another fit of the name 'mine' is running here")
    with only_fit("mine"):
        with refused, only_fit("mine"):
            pass
        with only_fit("other"):
            pass
    with only_fit("mine"):
        pass


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """The disk is full half way: the former best stays whole, in its place."""
    best = tmp_path / "best.ckpt"
    WholeCheckpoints(is_fresh=True).save_checkpoint({"weight": torch.tensor(1)}, best)

    def full(checkpoint, path, options=None):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lightning.fabric.plugins.io.torch_io.TorchCheckpointIO.save_checkpoint",
                        lambda self, *given: full(*given))  # fmt: skip
    with pytest.raises(OSError, match="No space left"):
        WholeCheckpoints(is_fresh=True).save_checkpoint({"weight": torch.tensor(2)}, best)
    assert files(tmp_path) == {"best.ckpt"}
    assert torch.load(best, weights_only=True) == {"weight": torch.tensor(1)}


@pytest.mark.parametrize("is_fresh", [True, False])
def test_the_first_checkpoint_of_a_fresh_fit_puts_the_former_ones_aside(tmp_path, is_fresh):
    for name in ("best", "last"):
        torch.save({"weight": 0}, tmp_path / f"{name}.ckpt")
    writer = WholeCheckpoints(is_fresh)
    for number in (1, 2):
        writer.save_checkpoint({"weight": number}, tmp_path / "best.ckpt")
    assert torch.load(tmp_path / "best.ckpt", weights_only=True) == {"weight": 2}
    former = {"best.previous.ckpt", "last.previous.ckpt"}
    assert files(tmp_path) == {"best.ckpt", *(former if is_fresh else {"last.ckpt"})}
    if is_fresh:
        for name in former:
            assert torch.load(tmp_path / name, weights_only=True) == {"weight": 0}


def test_a_fit_that_fails_before_its_first_step_displaces_nothing(fitted, capsys):
    """It once put the good checkpoint aside, and the one before it was gone."""
    folder = fitted / "checkpoints/ml-100k"
    main(command("fit", "--trainer.max_epochs", "1", "--model.policy_seed", "1"))
    before = {name: weights(folder / name) for name in files(folder)}
    assert set(before) == {f"{n}{p}.ckpt" for n in ("best", "last") for p in ("", ".previous")}
    with pytest.raises(SystemExit):
        run(command("fit", "--environment.max_calls", "1"))
    assert files(folder) == set(before)
    for name, state in before.items():
        now = weights(folder / name)
        assert all(torch.equal(now[key], value) for key, value in state.items()), name


def test_a_resumed_run_uses_the_learning_rates_it_is_given(fitted):
    """Those of the checkpoint's optimizers once won, without a word."""
    options = ("--ckpt_path", "last", "--model.actor_lr", "0.5", "--trainer.max_epochs", "2")
    made = main(command("fit", *options))
    rates = [group["lr"] for o in made.trainer.optimizers for group in o.param_groups]
    assert rates == [0.5, 0.01]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--trainer.limit_val_batches", "0"), "trainer.limit_val_batches is 0, but the best"),
        (("--trainer.max_steps", "3"), "would end a fit amid an epoch"),
        (("--trainer.max_time", "00:00:01:00"), "would end a fit amid an epoch"),
        (("--trainer.val_check_interval", "0.5"), "must leave validation at the end of epochs"),
        (("--trainer.check_val_every_n_epoch", "5"), "no epoch would be validated, and none kept"),
        (("--trainer.gradient_clip_val", "1"), "set model.max_grad_norm in its place"),
        (("--trainer.accumulate_grad_batches", "2"), "raise data.batch_size in its place"),
        (("--trainer.accelerator", "gpu"), "No supported gpu backend found"),
        (("--config", "empty.yaml"), "empty.yaml is empty: write settings into it, or leave it"),
        (("--config", "conf"), "conf is a folder: name the YAML file in it"),
        (("--seed_everything", "-1"), "seed_everything is -1: give a number from 0 to 4294967295"),
        (("--model.actor_lr", "-1"), "model.actor_lr is -1.0: give a number above 0"),
        (("--model.actor_lr", ".nan"), "model.actor_lr is nan: give a number above 0"),
        (("--model.discount", "1.5"), "model.discount is 1.5: give a number from 0 to 1"),
        (("--model.entropy_coef", "-0.1"), "model.entropy_coef is -0.1: give 0 or more"),
    ],
)
def test_what_a_fit_cannot_honour_is_one_sentence_before_it_begins(here, capsys, options, sentence):
    (here / "empty.yaml").write_text("# nothing yet\n")
    with pytest.raises(SystemExit) as stop:
        run(command("fit", *options))
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
    assert not list(here.glob("checkpoints/*/*.ckpt"))


def test_validation_every_second_epoch_leaves_a_checkpoint(here):
    main(command("fit", "--trainer.check_val_every_n_epoch", "2"))
    assert {"best.ckpt", "last.ckpt"} == files(here / "checkpoints/ml-100k")


def test_a_run_that_diverges_stops_and_keeps_the_epochs_before(fitted, capsys):
    """It once went on, announced a best score and left weights that are not numbers."""
    good = weights(fitted / "checkpoints/ml-100k/last.ckpt")
    rates = ("--model.actor_lr", "1e30", "--model.critic_lr", "1e30")
    with pytest.raises(SystemExit):
        run(command("fit", "--ckpt_path", "last", *rates, "--trainer.max_epochs", "4"))
    assert "training has diverged. Lower the learning rates" in capsys.readouterr().err
    kept = weights(fitted / "checkpoints/ml-100k/last.ckpt")
    assert all(torch.equal(kept[name], value) for name, value in good.items())
    assert all(value.isfinite().all() for value in kept.values() if value.is_floating_point())


def test_a_loss_that_is_not_finite_is_refused(tmp_path):
    model = RPP(patterns="conf/patterns/movies.yaml")
    with pytest.raises(InputError, match="the loss is nan: training has diverged"):
        model.descend(torch.tensor(math.nan), 1)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is damaged or not one of ours"),
        (b"PK\x03\x04 cut off", "is damaged or not one of ours"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is damaged or not one of ours"),
        ({"weight": torch.ones(1)}, "is no checkpoint of a fit, but holds weights or tensors"),
        (torch.ones(2), "is no checkpoint of a fit, but holds weights or tensors"),
    ],
)
@pytest.mark.parametrize("name", ["last", "x.ckpt"])
def test_a_file_that_is_no_checkpoint_is_told(tmp_path, monkeypatch, content, sentence, name):
    monkeypatch.chdir(tmp_path)
    path = Path("checkpoints/mine/last.ckpt" if name == "last" else name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=sentence):
        resolve_checkpoint("test", name, "mine")


def test_weights_of_other_sizes_and_fewer_epochs_are_one_sentence(here, capsys):
    main(command("fit"))
    for options, sentence in (
        (("--model.hidden_dim", "8"), "the checkpoint's weights are of other sizes than this"),
        (("--trainer.max_epochs", "1"), "the checkpoint has done 2 epochs and trainer.max_epochs"),
    ):
        with pytest.raises(SystemExit):
            run(command("fit", "--ckpt_path", "last", *options))
        assert sentence in capsys.readouterr().err


def test_the_checkpoint_of_the_fit_before_is_named(tmp_path, monkeypatch):
    """A fit that was stopped early once left it, and predict did not tell of it."""
    monkeypatch.chdir(tmp_path)
    Path("checkpoints/mine").mkdir(parents=True)
    Path("checkpoints/mine/best.previous.ckpt").touch()
    with pytest.raises(InputError, match=r"or name checkpoints/mine/best\.previous\.ckpt, that of"):
        resolve_checkpoint("predict", None, "mine")


@pytest.mark.parametrize(
    ("n_epochs", "options", "sentence"),
    [
        (0, (), "Every answer is kept: the same command comes back to here"),
        (1, (), "Every answer is kept: the same command with --ckpt_path last comes"),
        (1, ("--environment.cache_dir", "null"), "with --ckpt_path last goes on from the last"),
    ],
)
def test_an_interrupted_fit_tells_how_to_go_on(
    here, capsys, monkeypatch, n_epochs, options, sentence
):
    def interrupt(self, batch, batch_idx):
        if self.trainer.current_epoch == n_epochs:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    step = RPP.training_step
    monkeypatch.setattr(RPP, "training_step", interrupt)
    cached = ("--environment.cache_dir", "replies")
    with pytest.raises(SystemExit):
        run(command("fit", *cached, *options))
    assert sentence in capsys.readouterr().out


def test_a_closed_pipe_or_a_terminal_without_the_sign_ends_nothing():
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    stream = SafeStream(Closed())
    assert stream.write("first") == 5
    stream.write("second")
    stream.flush()
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    SafeStream(narrow).write("Δ NDCG")
    narrow.flush()
    assert narrow.buffer.getvalue() == b"? NDCG"


def test_sigterm_ends_a_run_within_a_hook(monkeypatch, tmp_path):
    """A comparison, all of which is one hook, once went on for as long as it took."""

    class Long(BoringModel):
        went_on = False

        def on_test_epoch_end(self):
            os.kill(os.getpid(), signal.SIGTERM)
            self.went_on = True

    model = Long()
    test = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False,
                   enable_progress_bar=False, default_root_dir=tmp_path).test  # fmt: skip
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for name, value in (("argv", ["train.py"]), ("stdout", sys.stdout), ("stderr", sys.stderr)):
        monkeypatch.setattr(sys, name, value)  # put back afterwards, as the handlers are
    try:
        with pytest.raises(SystemExit):
            reporting_mistakes(lambda _: test(model), None)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert not model.went_on
