"""Every reward of training steps, as a file that other learners and the audit read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from rpp.learners.base import PromptLearner
from rpp.processes import ask_together, gather
from rpp.rewards import SCHEMA, append_rewards, environment_fingerprint, put_aside, read_rewards
from rpp.rollout import Step


class RewardLog(Callback):
    """Writes the rewards of all training steps to a Parquet file, see :mod:`rpp.rewards`.

    It is written after every epoch. A resumed fit goes on with it; a fresh one begins anew and
    keeps the former as ``NAME.previous.parquet``.

    Args:
        path: The file to write.
    """

    def __init__(self, path: str = "checkpoints/rewards.parquet") -> None:
        self.path = Path(path)
        self.is_fresh = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the log that a resumed fit goes on with, before anything is paid for.

        Raises:
            InputError: If it is damaged, or another file is in its place.
        """
        if not isinstance(pl_module, PromptLearner):
            return
        self.is_fresh = pl_module.n_epochs_done == 0
        if not self.is_fresh and self.path.exists():
            ask_together(lambda: read_rewards(self.path))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the epoch's rewards after its last batch: before any checkpoint of the epoch.

        Raises:
            InputError: If another file has come into its place.
        """
        if not trainer.is_last_batch or not isinstance(pl_module, PromptLearner):
            return
        if getattr(trainer, "fast_dev_run", False):
            return
        rows = [row for part in gather(list(_rows(pl_module))) for row in part]
        ask_together(lambda: self._write(rows, pl_module) if trainer.is_global_zero else None)

    def _write(self, rows: list[dict[str, Any]], learner: PromptLearner[Any]) -> None:
        if not rows:  # learnt from a log alone, perhaps from the one in this place
            return
        if self.is_fresh:
            put_aside(self.path)
            self.is_fresh = False
        # sorted: which process played whom must not show
        table = pl.DataFrame(rows, SCHEMA).sort("step", "user", "number", maintain_order=True)
        append_rewards(self.path, table, learner.patterns.names)


def _rows(learner: PromptLearner[Any]) -> Iterator[dict[str, Any]]:
    """The rows of this process's steps of the epoch."""
    same = {
        "epoch": learner.current_epoch,
        "patterns": learner.patterns.fingerprint,
        "environment": environment_fingerprint(learner.environment_metadata),
    }
    for step, (number, log_prob) in zip(learner.train_steps, learner.train_draws, strict=True):
        for row in _rows_of_step(step, log_prob, learner.data.directory.item_ids):
            yield same | {"step": number} | row


def _rows_of_step(
    step: Step, log_prob: Tensor | None, item_ids: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """What is the episode's own.

    Raises:
        TargetAccessError: For test users.
    """
    n_users = len(step.episodes)
    probabilities = [None] * n_users if log_prob is None else log_prob.exp().tolist()
    for episode, actions, length, reward, probability in zip(
        step.episodes, step.actions.tolist(), step.lengths, step.rewards().tolist(), probabilities,
        strict=True,
    ):  # fmt: skip
        yield {
            "user": episode.user_id or str(episode.user),
            "number": episode.number,
            "target": item_ids[episode.candidates[episode.target].index],
            "split": episode.split,
            "actions": actions,
            "history_length": length,
            "reward": reward if math.isfinite(reward) else None,
            "probability": probability,
        }
