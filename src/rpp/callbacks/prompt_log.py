"""Choices of the policy and replies of the language models, for TensorBoard."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from rpp import charts
from rpp.learners.base import PromptLearner
from rpp.processes import gather_rows
from rpp.prompts.refine import table


class PromptLog(Callback):
    """Logs action distributions, sample prompts and replies to TensorBoard; all count from 1.

    Args:
        n_samples: Prompts and replies logged after every epoch.
    """

    def __init__(self, n_samples: int = 2) -> None:
        self.n_samples = n_samples

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Every sentence before and after refinement."""
        board = _tensorboard(trainer)
        if board is None or not isinstance(pl_module, PromptLearner) or pl_module.refiner is None:
            return
        board.add_text("refinements", table([*pl_module.refiner.refinements.values()]))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Action distribution per agent, sample prompts and replies."""
        if not isinstance(pl_module, PromptLearner) or not pl_module.train_steps:
            return
        actions = gather_rows(torch.cat([step.actions for step in pl_module.train_steps]))
        board = _tensorboard(trainer)
        if board is None:
            return
        epoch, patterns = trainer.current_epoch + 1, pl_module.patterns
        for k, (name, n) in enumerate(zip(patterns.names, patterns.n_actions, strict=True)):
            shares = torch.bincount(actions[:, k], minlength=n).double() / len(actions)
            for option, share in enumerate(shares.tolist(), 1):
                board.add_scalar(f"actions_{name}/{option}", share, epoch)
        last = pl_module.train_steps[-1]
        asked = zip(last.episodes, last.prompts, last.rankings, strict=True)
        for k, (episode, prompt, ranking) in enumerate([*asked][: self.n_samples], 1):
            board.add_text(
                f"samples/{k}",
                f"prompt\n```\n{prompt.text}\n```\nreply"
                f" ({ranking.status})\n```\n{ranking.reply}\n```\n"
                f"target: {episode.candidates[episode.target].title}",
                epoch,
            )

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Share of users at every option, by pattern (paper, Figures 11-14)."""
        if not isinstance(pl_module, PromptLearner) or not pl_module.test_results.last_steps:
            return
        steps = pl_module.test_results.last_steps
        own = [prompt.n_history for step in steps for prompt in step.prompts]
        shown = gather_rows(torch.tensor(own)).tolist()
        actions = gather_rows(torch.cat([step.actions for step in steps]))
        board = _tensorboard(trainer)
        if board is None:
            return
        figure = charts.user_distribution(
            actions, shown, pl_module.patterns, pl_module.n_candidates
        )
        board.add_figure("test/users_by_option", figure, trainer.current_epoch)


def _tensorboard(trainer: Trainer) -> Any:
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            return logger.experiment
    return None
