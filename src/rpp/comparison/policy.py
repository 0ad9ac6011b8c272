"""RPP, its ablations, its control as methods of the comparison: fitted if need be, and played."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from rpp.comparison.base import PromptMethod, Ranks, Task
from rpp.data.artifacts import load_or_make
from rpp.module import RPPModule, Step, n_differing
from rpp.types import Episode, InputError, Ranking

KEPT_FOLDER = "policies"
"""Subfolder of a prepared folder with the fitted policies."""

MONITOR = "val/ndcg@10"

N_PROMPTS = "n_prompts"
"""Stands among the kept weights: the prompts that fitting them took."""


class Policy(PromptMethod):
    """A personal prompt for every user by a policy that learnt on training users.

    What was fitted before with the same settings, data, sentences and language model is used
    again. The epoch and the number of steps are chosen on validation users.

    Args:
        name: Name in tables.
        module: The learner and its settings.
        max_epochs: Passes over the training users.
        batch_size: Users who share an update.
        refined: RPP+: the sentences are those of the comparison's refiner.
        log_dir: Where TensorBoard files go.
    """

    def __init__(
        self,
        name: str,
        module: RPPModule,
        max_epochs: int = 4,
        batch_size: int = 20,
        refined: bool = False,
        log_dir: str = "logs",
    ) -> None:
        if min(max_epochs, batch_size) < 1:
            raise InputError(
                f"{name}: max_epochs is {max_epochs} and batch_size {batch_size}: at least 1 each"
            )
        self.name = name
        self.module = module
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.refined = refined
        self.log_dir = log_dir
        self.played: list[Step] = []  # the steps of the users ranked last, for charts
        self.n_prompts_fit = 0  # when the weights were made, now or in another run

    def learn(self, task: Task) -> Ranks:
        """Fit, or load what was fitted.

        Raises:
            InputError: If refined sentences are asked for and there is no refiner.
        """
        if self.refined and task.refiner is None:
            raise InputError(
                f"{self.name} needs a refiner: set environment.refiner, for example to same"
            )
        self.module.ranker = task.ranker
        self.module.refiner = task.refiner if self.refined else None
        folder = task.data.folder / KEPT_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        with torch.inference_mode(False), torch.enable_grad():  # a test step switches them off
            self.module.build(task.data, torch.device("cpu"))
            if self.module.refiner is not None:  # before the fit: reused weights need them too
                _ = self.module.refiner.refinements
            n_before = task.ranker.n_prompts
            load_or_make(
                folder / f"{_file_name(self.name)}.safetensors",
                self._about(task.data.reshuffle),
                self._load,
                lambda: self._fit(task, folder),
            )
        self.n_prompts_reused = self.n_prompts_fit - (task.ranker.n_prompts - n_before)
        return self._rank

    def n_calls(self, task: Task, n_users: int) -> int:
        """All of a fit, and every step of every test user."""
        module = self.module
        n_learners = len(task.data.episodes("train")) * module.n_steps * self.max_epochs
        n_checks = len(task.data.episodes("validation")) * (
            module.n_steps * self.max_epochs + module.n_static_asked
        )
        return n_learners + n_checks + n_users * module.n_steps

    def _about(self, reshuffle: bool) -> dict[str, str]:
        """What the weights depend on."""
        module = self.module
        values = {name: vars(module).get(name) for name in _parameters(type(module))}
        settings: dict[str, Any] = {
            name: value for name, value in values.items() if isinstance(value, int | float | str)
        }
        settings |= {
            "max_epochs": self.max_epochs,
            "batch_size": self.batch_size,
            "reshuffle": reshuffle,
        }
        belonging = {key: each for key, each in module.belonging.items() if "file" not in key}
        return {
            "settings": json.dumps(settings, sort_keys=True),
            "data or sentences": json.dumps(belonging, sort_keys=True),
            "language model": json.dumps(module.environment, sort_keys=True),
        }

    def _fit(self, task: Task, folder: Path) -> Mapping[str, Tensor]:
        users = copy.copy(task.data)
        users.batch_size = self.batch_size
        with TemporaryDirectory(dir=folder, prefix=".fit") as temp:
            best = ModelCheckpoint(temp, filename="best", monitor=MONITOR, mode="max")
            n_before = task.ranker.n_prompts
            trainer = Trainer(
                accelerator=self._accelerator(task),
                devices=1,
                max_epochs=self.max_epochs,
                logger=TensorBoardLogger(
                    self.log_dir, f"{task.data.folder.name}-{_file_name(self.name)}",
                    default_hp_metric=False,
                ),
                num_sanity_val_steps=0,
                log_every_n_steps=1,
                enable_model_summary=False,
                callbacks=[best, TQDMProgressBar()],
            )  # fmt: skip
            trainer.fit(self.module, users)
            kept = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
        state: Mapping[str, Tensor] = kept["state_dict"]
        count = {N_PROMPTS: torch.tensor(task.ranker.n_prompts - n_before)}
        return {name: weight.contiguous() for name, weight in state.items()} | count

    def _accelerator(self, task: Task) -> Any:
        """That of the comparison's trainer, if there is one."""
        outer = task.data.trainer
        return "auto" if outer is None else outer.accelerator

    def _load(self, state: Mapping[str, Tensor]) -> RPPModule:
        weights = dict(state)
        self.n_prompts_fit = int(weights.pop(N_PROMPTS))
        try:
            self.module.load_state_dict(weights)
        except RuntimeError as error:  # other layers than ours
            raise InputError(f"the weights of {self.name} do not fit") from error
        return self.module.eval()

    def _rank(self, episodes: Sequence[Episode]) -> list[Ranking]:
        module = self.module
        self.played = module.play(episodes, module.greedy, int(module.inference_steps))
        return self.played[-1].rankings


class ExchangedPrompts(PromptMethod):
    """What a policy chose, each user's given to another: what is left is not personal.

    Args:
        policy: The policy, fitted where it is not.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.name = f"{policy.name}, exchanged"
        self.n_exchanged = 0  # users who got another prompt

    def learn(self, task: Task) -> Ranks:
        """Fit the policy, or load what was fitted.

        Raises:
            InputError: If there is a single test user.
        """
        if len(task.data.episodes("test")) < 2:
            raise InputError(f"{self.name} needs two users: raise data.n_test_users")
        play = self.policy.learn(task)
        self.n_prompts_reused = self.policy.n_prompts_reused

        def ranks(episodes: Sequence[Episode]) -> list[Ranking]:
            play(episodes)
            last = self.policy.played[-1:]
            exchanged = self.policy.module.exchange(last)
            self.n_exchanged = n_differing(last, exchanged)
            return exchanged[0].rankings

        return ranks

    def n_calls(self, task: Task, n_users: int) -> int:
        """Those of the policy and one a user."""
        return self.policy.n_calls(task, n_users) + n_users


def _parameters(kind: type) -> set[str]:
    """Names of a class's constructor arguments, its parents' included."""
    return {name for each in kind.__mro__ for name in inspect.signature(each).parameters}


def _file_name(name: str) -> str:
    """A method's name without what file names had better not hold."""
    plain = name.lower().replace("+", "-plus")
    return "".join(sign if sign.isalnum() or sign == "-" else "-" for sign in plain)
