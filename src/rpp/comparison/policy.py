"""Learners as methods of the comparison: fitted if need be, played, their prompts permuted."""

from __future__ import annotations

import copy
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
from rpp.evaluation import PERMUTED, PERMUTED_NOTE, n_differing, step_permuted
from rpp.learners.base import PromptLearner
from rpp.learners.checkpoint import UNCHECKED
from rpp.metrics import METRICS, paired_difference, paired_p_value
from rpp.results.render import p_value, signed
from rpp.rollout import Step
from rpp.types import SPLITS, Episode, InputError, Ranking, final_scoring

POLICIES_FOLDER = "policies"
"""Subfolder of a prepared folder with the fitted policies."""

MONITOR = "val/ndcg@10"

N_PROMPTS = "n_prompts"
"""Stands among the cached weights: the prompts that fitting them took."""


class Policy(PromptMethod):
    """A personal prompt for every user by a policy that learnt on training users.

    What was fitted before with the same settings, data, sentences and language model is used
    again. The epoch and the number of steps are chosen on validation users.

    Args:
        name: Name in tables.
        learner: The learner and its settings.
        max_epochs: Passes over the training users.
        batch_size: Users who share an update.
        refined: RPP+: the sentences are those of the comparison's refiner.
        log_dir: Where TensorBoard files go.
        check_val_every_n_epoch: Epochs between two looks at validation users, by whom the weights
            are chosen; as many as ``max_epochs`` take the last ones.
    """

    def __init__(
        self,
        name: str,
        learner: PromptLearner,  # type: ignore[type-arg]  # jsonargparse finds no options of X[Y]
        max_epochs: int = 4,
        batch_size: int = 20,
        refined: bool = False,
        log_dir: str = "logs",
        check_val_every_n_epoch: int = 1,
    ) -> None:
        if min(max_epochs, batch_size, check_val_every_n_epoch) < 1:
            raise InputError(
                f"{name}: max_epochs is {max_epochs}, batch_size {batch_size} and"
                f" check_val_every_n_epoch {check_val_every_n_epoch}: at least 1 each"
            )
        self.check_val_every_n_epoch = min(check_val_every_n_epoch, max_epochs)
        self.name = name
        self.learner: PromptLearner[Any] = learner
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.refined = refined
        self.log_dir = log_dir
        self.played: Sequence[Step] = ()
        self.played_patterns = learner.patterns
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
        self.learner.ranker, self.learner.evidence = task.ranker, task.evidence
        self.learner.refiner = task.refiner if self.refined else None
        folder = task.data.folder / POLICIES_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        with torch.inference_mode(False), torch.enable_grad():  # a test step switches them off
            self.learner.build(task.data, torch.device("cpu"))
            if self.learner.refiner is not None:  # before the fit: cached weights need them too
                _ = self.learner.refiner.refinements
            n_before = task.ranker.n_prompts
            load_or_make(
                folder / f"{_file_name(self.name)}.safetensors",
                self.metadata(task.data.reshuffle),
                self._load,
                lambda: self._fit(task, folder),
            )
        self.n_prompts_reused = self.n_prompts_fit - (task.ranker.n_prompts - n_before)
        return self._rank

    def max_calls(self, task: Task, n_users: int) -> int:
        """All of a fit, and every step of every test user."""
        counts = {split: len(task.data.episodes(split)) for split in SPLITS}
        n_validations = self.max_epochs // self.check_val_every_n_epoch
        n_fit = self.learner.max_fit_calls(counts, self.max_epochs, n_validations)
        return n_fit + n_users * self.learner.n_steps

    def metadata(self, reshuffle: bool) -> dict[str, str]:
        """What the weights depend on: all arguments of the learner, data, prompts, environment.

        Args:
            reshuffle: Whether candidates are shuffled anew in every epoch.
        """
        learner = self.learner
        settings = learner.arguments | {
            "class": f"{type(learner).__module__}.{type(learner).__qualname__}",
            "max_epochs": self.max_epochs,
            "check_val_every_n_epoch": self.check_val_every_n_epoch,
            "batch_size": self.batch_size,
            "reshuffle": reshuffle,
        }
        provenance = {k: each for k, each in learner.provenance.items() if k not in UNCHECKED}
        return {
            # an argument that is no plain value is known by its repr: other objects, other weights
            "settings": json.dumps(settings, sort_keys=True, default=repr),
            "data or sentences": json.dumps(provenance, sort_keys=True),
            "language model": json.dumps(learner.environment_metadata, sort_keys=True),
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
                check_val_every_n_epoch=self.check_val_every_n_epoch,
                logger=TensorBoardLogger(
                    self.log_dir, f"{task.data.folder.name}-{_file_name(self.name)}",
                    default_hp_metric=False,
                ),
                num_sanity_val_steps=0,
                log_every_n_steps=1,
                enable_model_summary=False,
                callbacks=[best, TQDMProgressBar()],
            )  # fmt: skip
            trainer.fit(self.learner, users)
            checkpoint = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
        state: Mapping[str, Tensor] = checkpoint["state_dict"]
        count = {N_PROMPTS: torch.tensor(task.ranker.n_prompts - n_before)}
        return {name: weight.contiguous() for name, weight in state.items()} | count

    def _accelerator(self, task: Task) -> Any:
        """That of the comparison's trainer, if there is one."""
        outer = task.data.trainer
        return "auto" if outer is None else outer.accelerator

    def _load(self, state: Mapping[str, Tensor]) -> PromptLearner[Any]:
        weights = dict(state)
        self.n_prompts_fit = int(weights.pop(N_PROMPTS))
        try:
            self.learner.load_state_dict(weights)
        except RuntimeError as error:  # other layers than ours
            raise InputError(f"the weights of {self.name} do not fit") from error
        return self.learner.eval()

    def _rank(self, episodes: Sequence[Episode]) -> Sequence[Ranking]:
        self.played = self.learner.play(episodes, self.learner.greedy)
        return self.played[-1].rankings


class PermutedPrompts(PromptMethod):
    """Prompts of a policy, permuted across users; marginals unchanged.

    Args:
        policy: The policy, fitted where it is not.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.name = f"{policy.name}{PERMUTED}"
        self.n_differing = 0  # users whose permuted prompt differs from their own

    def learn(self, task: Task) -> Ranks:
        """Fit the policy, or load what was fitted.

        Raises:
            InputError: If there is a single test user.
        """
        if len(task.data.episodes("test")) < 2:
            raise InputError(f"{self.name} needs two users: raise data.n_test_users")
        play = self.policy.learn(task)
        self.n_prompts_reused = self.policy.n_prompts_reused

        def ranks(episodes: Sequence[Episode]) -> Sequence[Ranking]:
            play(episodes)
            last = self.policy.played[-1:]
            learner = self.policy.learner
            permuted = step_permuted(learner.environment, last, learner.policy_seed)
            self.n_differing = n_differing(last, permuted)
            return permuted[0].rankings

        return ranks

    def max_calls(self, task: Task, n_users: int) -> int:
        """Those of the policy and one a user."""
        return self.policy.max_calls(task, n_users) + n_users

    def notes(self, ranks: Tensor) -> list[str]:
        """The policy's paired gain over its permuted prompts."""
        with final_scoring():
            own = METRICS["ndcg@10"](self.policy.played[-1].target_ranks())
        permuted = METRICS["ndcg@10"](ranks)
        gain, p = paired_difference(own, permuted), paired_p_value(own, permuted)
        return [
            f"{self.name}: {PERMUTED_NOTE} {self.n_differing} of {len(own)} prompts differ from the"
            f" user's own. NDCG@10, {self.policy.name} - {self.name}: {signed(gain)}, p"
            f" {p_value(p)}."
        ]


def _file_name(name: str) -> str:
    """A method's name without what file names had better not hold."""
    plain = name.lower().replace("+", "-plus")
    return "".join(sign if sign.isalnum() or sign == "-" else "-" for sign in plain)
