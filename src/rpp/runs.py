"""A run's folder of checkpoints: one fit at a time, files written whole, former ones put aside."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning import Callback, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Timer

from rpp.types import InputError

CHECKPOINTS = "checkpoints"
BEST, LAST = "best.ckpt", "last.ckpt"


@contextmanager
def only_fit(name: str) -> Iterator[None]:
    """Hold the run's folder, so that no other fit of the same name writes to it.

    Args:
        name: Name of the run.

    Raises:
        InputError: If another fit of that name is running.
    """
    folder = Path(CHECKPOINTS, name)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".fit.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"another fit of the name {name!r} is running here and would write the same"
            f" checkpoints ({folder}): wait for it, or give this one another --name"
        ) from None
    try:
        yield
    finally:
        lock.release()


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and puts it there whole.

    The first one of a fresh fit puts the best and last checkpoint of the former fit of the same
    name aside, as ``best.previous.ckpt`` and ``last.previous.ckpt``. Until then they stay.

    Args:
        is_fresh: Whether the fit begins anew, not from a checkpoint.
    """

    def __init__(self, is_fresh: bool) -> None:
        super().__init__()
        self.puts_aside = is_fresh

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint; what was there before is replaced only by a whole one."""
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=place.parent, prefix=".writing") as temp:
            whole = Path(temp, place.name)
            super().save_checkpoint(checkpoint, whole, storage_options)
            if self.puts_aside:
                for former in (place.parent / BEST, place.parent / LAST):
                    if former.is_file():
                        former.replace(former.with_suffix(".previous.ckpt"))
                self.puts_aside = False
            os.replace(whole, place)


def resolve_checkpoint(subcommand: str, given: str | None, name: str) -> Path | None:
    """The checkpoint a subcommand starts from.

    Args:
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.
        given: What ``--ckpt_path`` says: a file, ``best``, ``last`` or nothing. Nothing means a
            fresh start for ``fit`` and the best checkpoint for the others.
        name: Name of the run.

    Raises:
        InputError: If there is no such file, or it is no checkpoint.
    """
    if given is None and subcommand == "fit":
        return None
    asked = given or "best"
    path = Path(CHECKPOINTS, name, f"{asked}.ckpt") if asked in ("best", "last") else Path(asked)
    if not path.is_file():
        former = path.with_suffix(".previous.ckpt")
        named = f"{former}, that of the fit before," if former.is_file() else "one"
        raise InputError(
            f"there is no checkpoint {path}: run `python train.py fit` with the same --config"
            f" first, or name {named} with --ckpt_path"
        )
    read_checkpoint(path)
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint: plain values and tensors, nothing else is unpickled.

    Raises:
        InputError: If it is damaged, or no checkpoint.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise InputError(
            f"the checkpoint {path} is damaged or not one of ours and cannot be read: name another"
            " with --ckpt_path or fit again"
        ) from error
    if not isinstance(content, dict) or not {"state_dict", "epoch"} <= content.keys():
        raise InputError(
            f"{path} is no checkpoint of a fit, but holds weights or tensors alone: name"
            f" {BEST} or {LAST} of a run with --ckpt_path"
        )
    return content


def check_trainer(trainer: Trainer) -> None:
    """Refuse what a fit cannot honour, before it begins.

    The epoch and the number of steps are chosen on validation users after every epoch.

    Raises:
        InputError: With the option and what to set in its place.
    """
    every = trainer.check_val_every_n_epoch
    n_epochs = trainer.max_epochs
    if trainer.limit_val_batches == 0:
        raise InputError(
            "trainer.limit_val_batches is 0, but the best checkpoint is chosen on validation users:"
            " leave it out, or lower data.n_validation_users"
        )
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    if trainer.max_steps != -1 or any(isinstance(each, Timer) for each in callbacks):
        raise InputError(
            "trainer.max_steps and trainer.max_time would end a fit amid an epoch, before"
            " validation: use trainer.max_epochs, or environment.max_calls for a budget"
        )
    if every is None or trainer.val_check_interval != 1.0:
        raise InputError(
            "trainer.check_val_every_n_epoch and trainer.val_check_interval must leave validation"
            " at the end of epochs: set the first to a number, and leave the other out"
        )
    if n_epochs is not None and 0 < n_epochs < every:
        raise InputError(
            f"trainer.check_val_every_n_epoch is {every} and max_epochs {n_epochs}: no epoch would"
            " be validated, and none kept: lower the first"
        )
    if trainer.gradient_clip_val is not None:
        raise InputError(
            "trainer.gradient_clip_val does nothing here: set model.max_grad_norm in its place"
        )
    if trainer.accumulate_grad_batches != 1:
        raise InputError(
            "trainer.accumulate_grad_batches does nothing here: raise data.batch_size in its place"
        )
