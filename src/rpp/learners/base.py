"""The contract of a learner: what training, test, callbacks and the comparison rely on.

Subclass :class:`PromptLearner`, say in ``act`` what it chooses and in Lightning's
``training_step`` how it learns; validation, test, prediction and budgets are here, checkpoints in
:mod:`rpp.learners.policy`. Name the class in ``model.class_path``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import CatMetric

from rpp import evaluation
from rpp.data.shares import share
from rpp.learners.checks import check_smallest
from rpp.learners.client import Stage
from rpp.learners.policy import PromptPolicy
from rpp.metrics import METRICS, ndcg
from rpp.processes import all_reduce_sum, gather, gather_rows
from rpp.prompts.static import StaticPrompt, draw_static_prompts
from rpp.rollout import C, Step, Transition
from rpp.terminal import log_progress
from rpp.types import SPLITS, Episode, Split

EPOCH_MEAN: dict[str, Any] = {"on_step": False, "on_epoch": True, "sync_dist": True}
"""How training figures are logged; ``sync_dist`` although all processes log the same figures, for
Lightning cannot know that they do."""

SAMPLED = 1_000_001
"""Part of the key by which test actions are drawn: no epoch has this number."""


class PromptLearner(PromptPolicy[C]):
    """A policy over prompts that learns from the rewards of a frozen language model.

    Args:
        n_static_prompts: Prompts drawn for the row "best static prompt" of the test table.
        policy: What :class:`rpp.learners.policy.PromptPolicy` takes.

    Attributes:
        train_steps: Steps of the running epoch, of this process alone, for the logs.
        train_draws: Of each of them its number in the episode, and the log-probability of every
            user's actions, ``(B,)``, where the choice tells it.
        test_results: What the test has measured so far.
    """

    n_draws = 1
    """Episodes that are played in an epoch for each training user and target."""

    static_actions: Tensor
    static_length: Tensor

    def __init__(self, n_static_prompts: int = 8, **policy: Any) -> None:
        super().__init__(**policy)
        self.automatic_optimization = False
        check_smallest(n_static_prompts=(n_static_prompts, 1))
        self.n_static_prompts = n_static_prompts
        self.register_buffer("static_actions", torch.full((len(self.patterns.names),), -1))
        self.register_buffer("static_length", torch.tensor(0))
        self.val_ranks: Any = torch.nn.ModuleList(
            CatMetric(nan_strategy="disable", sync_on_compute=False) for _ in range(self.n_steps)
        )
        self.train_steps: list[Step] = []
        self.train_draws: list[tuple[int, Tensor | None]] = []
        self.test_results = evaluation.TestResults()

    # -- training ----------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """An optimizer that moves nothing, for a learner without gradients; others have their own.

        Lightning counts updates by the steps of an optimizer, and writes no checkpoint without.
        """
        return torch.optim.SGD([self.unmoved], lr=0.0)

    def count_update(self) -> None:
        """Count an update of a learner without gradients: call it in ``training_step``."""
        self.optimizers().step()  # type: ignore[union-attr]

    def on_train_epoch_start(self) -> None:
        """Forget the steps of the last epoch."""
        self.train_steps, self.train_draws = [], []

    def log_reward(self, transition: Transition[C]) -> None:
        """Log the mean reward of a training step, and keep the step for the logs."""
        self.train_steps.append(transition.step)
        self.train_draws.append((transition.number, transition.log_prob))
        reward = transition.step.rewards().to(self.device)
        known = reward[reward.isfinite()]
        total, n_known = all_reduce_sum(torch.stack([known.sum(), known.new_tensor(len(known))]))
        if n_known:
            options = EPOCH_MEAN | {"batch_size": int(n_known)}
            self.log("train/reward", total / n_known, prog_bar=True, **options)
            self.log(
                f"train_reward_by_step/{transition.number + 1:02d}", total / n_known, **options
            )

    @torch.no_grad()
    def on_train_start(self) -> None:
        """Choose the best of some static prompts on validation users: what is to be beaten."""
        if self.static_length > 0:  # a resumed run has chosen already
            return
        best, score = evaluation.best_static_prompt(
            self.environment, self._static_prompts(), self._own_validation_users()
        )
        if score is not None and self.logger is not None:
            self.logger.log_metrics({"val/best_static_reward": score}, step=0)
        self.static_actions.copy_(torch.tensor(best.actions))
        self.static_length.fill_(best.length)

    def _static_prompts(self) -> list[StaticPrompt]:
        return draw_static_prompts(
            self.patterns, self.n_static_prompts, self.n_steps, self.policy_seed
        )

    def _own_validation_users(self) -> list[Episode]:
        trainer = self.trainer
        return share(self.data.episodes("validation"), trainer.global_rank, trainer.world_size)

    @property
    def static(self) -> StaticPrompt:
        """The best static prompt."""
        return StaticPrompt(tuple(self.static_actions.tolist()), int(self.static_length))

    # -- validation --------------------------------------------------------------------------

    def validation_step(self, batch: list[Episode], batch_idx: int) -> None:
        """Play all steps greedily on validation users."""
        steps = self.play(batch, self.greedy, self.n_steps)
        for ranks, step in zip(self.val_ranks, steps, strict=True):
            ranks.update(step.target_ranks())

    def on_validation_epoch_end(self) -> None:
        """Choose how many steps inference plays: those after which NDCG is highest."""
        # sorted: which process played whom must not show in a sum
        by_step = [gather_rows(r.compute().reshape(-1)).sort().values for r in self.val_ranks]
        for ranks in self.val_ranks:
            ranks.reset()
        rewards = [ndcg(ranks, self.n_candidates) for ranks in by_step]
        # no answer counts 0 in the choice, else the users who got none would decide it
        best = int(torch.stack([each.nan_to_num(0).mean() for each in rewards]).argmax())
        self.inference_steps.fill_(best + 1)
        for name, metric in METRICS.items():
            shown = name in ("ndcg@10", "hr@5")
            # numbers, which are logged on the module's device: nccl takes no tensor on the CPU
            score = float(metric(by_step[best]).nanmean())
            self.log(f"val/{name}", score, prog_bar=shown, sync_dist=True)
        self.log("val/inference_steps", float(best + 1), sync_dist=True)
        for step, each in enumerate(rewards, 1):
            self.log(f"val_ndcg_by_step/{step:02d}", float(each.nanmean()), sync_dist=True)

    # -- test and prediction -----------------------------------------------------------------

    def sampled(self, state: Tensor, number: int, episodes: Sequence[Episode]) -> C:
        """A choice drawn from the policy, always the same one."""
        return self.drawn(SAMPLED, state, number, episodes)

    def on_test_start(self) -> None:
        """Forget the results of an earlier test."""
        self.test_results = evaluation.TestResults()

    def test_step(self, batch: list[Episode], batch_idx: int) -> None:
        """Play the policy greedily and sampled, a random one, and the best static prompt."""
        environment, n_steps = self.environment, int(self.inference_steps)
        with torch.no_grad():
            played = [*self.rollout(batch, self.greedy, n_steps)]
        steps = [transition.step for transition in played]
        first = {f"{self.title}, first step": steps[0]} if self.n_steps > 1 else {}
        rows = {
            self.title: steps[-1],
            **first,
            f"{self.title}, sampled": self.play(batch, self.sampled)[-1],
            evaluation.RANDOM_POLICY: evaluation.step_random(
                environment, batch, n_steps, self.policy_seed
            ),
            evaluation.BEST_STATIC: environment.step_static(batch, [self.static]),
        }
        self.test_results.add(rows, steps, self.option_probabilities(played[-1]))

    def on_test_epoch_end(self) -> None:
        """Permute the prompts across users, if there are several."""
        results = self.test_results
        if results.n_users < 2:
            return
        if self.trainer.is_global_zero:
            log_progress("Permuting the prompts across users ...")
        permuted = evaluation.step_permuted(self.environment, results.last_steps, self.policy_seed)
        results.n_permuted = sum(gather(evaluation.n_differing(results.last_steps, permuted)))
        for step in permuted:
            results.add_row(f"{self.title}{evaluation.PERMUTED}", step)

    def predict_step(self, batch: list[Episode], batch_idx: int) -> list[dict[str, Any]]:
        """Recommend: the sentences sent, the final prompt and the ranking of every user.

        With a refiner also the sentences chosen, which it reworded.
        """
        known = batch if self.moved is None else self.moved(batch)
        with torch.no_grad():
            last = [*self.rollout(known, self.greedy, int(self.inference_steps))][-1]
        parts, item_ids = self.patterns.parts, self.data.directory.item_ids
        return [
            {
                "user": episode.user_id,
                "sentences": dict(zip(parts, prompt.sentences, strict=True)),
                **(
                    {"chosen": dict(zip(parts, prompt.chosen, strict=True))} if self.refiner else {}
                ),
                "probabilities": probabilities,
                "prompt": prompt.text,
                "ranking": [episode.candidates[k].title for k in ranking.order],
                "items": [item_ids[episode.candidates[k].index] for k in ranking.order],
                "scores": [finite(ranking.scores[k]) for k in ranking.order if ranking.scores],
                "status": ranking.status,
                "reply": ranking.reply,
            }
            for episode, prompt, ranking, probabilities in zip(
                batch,
                last.step.prompts,
                last.step.rankings,
                self.option_probabilities(last),
                strict=True,
            )
        ]

    @torch.no_grad()
    def option_probabilities(self, transition: Transition[C]) -> list[dict[str, list[float]]]:
        """Probability of every option by pattern, of every user; empty where there is none."""
        users = transition.step.episodes
        probs = self.probabilities(transition.state, transition.number, users)
        if probs is None:
            return [{} for _ in users]
        sizes = [*zip(self.patterns.names, self.patterns.n_actions, strict=True)]
        return [{name: row[k][:n] for k, (name, n) in enumerate(sizes)} for row in probs.tolist()]

    # -- budget ------------------------------------------------------------------------------

    def max_fit_calls(self, n_users: Mapping[Split, int], n_epochs: int, n_validations: int) -> int:
        """Calls of a fit at most: every step of every epoch, and the choice of a static prompt."""
        n_episodes = (
            n_epochs * n_users["train"] * self.n_draws + n_validations * n_users["validation"]
        )
        return n_episodes * self.n_steps + evaluation.n_static_calls(
            self.n_static_prompts, n_users["validation"]
        )

    def max_calls(self, stage: Stage) -> int | None:
        """Largest number of calls to the language model; ``None`` without ``max_epochs``."""
        n_users = {split: len(self.data.episodes(split)) for split in SPLITS}
        if stage == "test":  # greedy and sampled play all steps, the other three rows ask once
            return self.n_refined + n_users["test"] * (2 * int(self.inference_steps) + 3)
        n_epochs = self.trainer.max_epochs
        if n_epochs is None or n_epochs < 0:
            return None
        done = min(self.n_epochs_done, n_epochs)
        every = self.trainer.check_val_every_n_epoch or 1
        n_calls = self.max_fit_calls(n_users, n_epochs - done, n_epochs // every - done // every)
        if self.static_length > 0:  # chosen before the run that is resumed was stopped
            n_calls -= evaluation.n_static_calls(self.n_static_prompts, n_users["validation"])
        return self.n_refined + n_calls

    def calibrate(self, stage: Stage, n_prompts: int) -> None:
        """Ask some prompts that this process asks anyway, long ones where there is a choice."""
        if stage == "fit":
            static = max(self._static_prompts(), key=lambda each: each.length)
            episodes = self._own_validation_users()
        else:
            static = self.static
            episodes = [episode for batch in self.data.test_dataloader() for episode in batch]
        self.environment.step_static(episodes[:n_prompts], [static])


def finite(score: float) -> float | None:
    """A score as JSON can write it: minus infinity, for what is not among the best, is none."""
    return score if math.isfinite(score) else None
