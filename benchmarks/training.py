"""What the learner itself costs: ``python benchmarks/training.py --out training.md``.

Fifteen steps of 200 users of MovieLens-100K through the real module, environment, trainer and
prompt encoder, by part, with a scripted language model whose own time is left out. Then the
language model of the embedded default on some prompts of the middle step, extrapolated to all
users: the learner's share of a step.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any
from unittest.mock import patch

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from rpp import rollout
from rpp.agents.actor_critic import ActorCritic
from rpp.agents.state import StateEncoder
from rpp.callbacks.environment import RewardEnvironment
from rpp.callbacks.prompt_log import PromptLog
from rpp.data.datamodule import EpisodeDataModule
from rpp.data.lightgcn import LightGCNSettings
from rpp.learners.base import PromptLearner
from rpp.learners.rpp import RPP
from rpp.llms.base import LanguageModel, ScriptedLanguageModel
from rpp.llms.controls import copies_the_list
from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.ranker import Decoding, Ranker
from rpp.rollout import Step

LLM = "language model"
REST = "Lightning, loading"
PARTS: dict[str, list[tuple[Any, str]]] = {
    "compose prompts": [(rollout, "compose")],
    "rank: cache, replies read": [(Ranker, "rank")],
    "prompt encoder": [(RPP, "observe")],
    "state and agents": [
        *((StateEncoder, name) for name in ("initial", "observe", "forward")),
        *((ActorCritic, name) for name in ("forward", "value")),
    ],
    "update: gradients, Adam": [(RPP, "_update")],
    "reward, metrics, logs": [(Step, "rewards"), (PromptLearner, "log_reward"), (RPP, "log")],
    LLM: [(ScriptedLanguageModel, name) for name in ("generate", "score")],
}
"""What belongs to each part of a step: functions by where they are looked up."""

MOST_SHARE, MOST_SECONDS = 0.03, 10
"""What has to be reached: the learner's share of a step; seconds of all 15 steps."""


class Stopwatch(Callback):
    """Time of each part of the training epochs, without what a part inside it took.

    Attributes:
        seconds: By part.
        cpu: The same in seconds of processor time, whatever else the machine does.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)
        self._parts: list[str] = []  # the one that runs, inside the others
        self._last = (0.0, 0.0)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        self._last = perf_counter(), process_time()
        self._parts = [REST]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End; what follows counts for nothing."""
        self._book()
        self._parts = []

    def _book(self) -> None:
        """Give the time since the last change of part to the part that was running."""
        now = perf_counter(), process_time()
        self.seconds[self._parts[-1]] += now[0] - self._last[0]
        self.cpu[self._parts[-1]] += now[1] - self._last[1]
        self._last = now

    def _watched(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            if not self._parts:
                return function(*args, **kwargs)
            self._book()
            self._parts.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._book()
                self._parts.pop()

        return watched

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the functions of all parts."""
        with ExitStack() as stack:
            for part, functions in PARTS.items():
                for owner, name in functions:
                    watched = self._watched(getattr(owner, name), part)
                    stack.enter_context(patch.object(owner, name, watched))
            yield


def learn(
    model: RPP, data: EpisodeDataModule, decoding: Decoding, *, show_candidates: bool
) -> Stopwatch:
    """One epoch: ``model.n_steps`` steps of all users, kept in ``model.train_steps``."""
    watch = Stopwatch()
    llm = ScriptedLanguageModel(copies_the_list, scorer=lambda _, title: -float(len(title)))
    with TemporaryDirectory(prefix="rpp-benchmark-") as temp:
        environment = RewardEnvironment(llm, decoding, show_candidates, cache_dir=temp)
        trainer = Trainer(
            max_epochs=1,
            limit_val_batches=0,
            log_every_n_steps=1,
            accelerator="cpu",
            logger=TensorBoardLogger(temp, default_hp_metric=False),
            callbacks=[environment, PromptLog(), watch],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with watch.watching():
            trainer.fit(model, data)
    return watch


def language_model_seconds(llm: LanguageModel, step: Step, n_prompts: int) -> float:
    """Seconds a user of ranking by likelihood, as in ``conf/rpp.yaml``, nothing in the cache."""
    llm.score(["warm"], [["up"]])
    ranker = Ranker(llm, "likelihood", show_candidates=False)
    prompts, episodes = step.prompts[:n_prompts], step.episodes[:n_prompts]
    ranker.rank(prompts, episodes)
    return ranker.counters.seconds / len(prompts)


def table(watches: dict[str, Stopwatch], n_steps: int) -> list[str]:
    """Seconds of a step by part, one pair of columns for each decoding."""
    heads = [f"`{name}`: s a step | CPU s" for name in watches]
    lines = [f"| part | {' | '.join(heads)} |", "| --- |" + " ---: |" * (2 * len(watches))]
    parts = [*(part for part in PARTS if part != LLM), REST]
    for name, some in [*((part, [part]) for part in parts), ("**the learner**", parts)]:
        cells = [
            f"{sum(times[part] for part in some) / n_steps:.3f}"
            for watch in watches.values()
            for times in (watch.seconds, watch.cpu)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main(args: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write it if a file was named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="Markdown file to write")
    parser.add_argument("--n-users", type=int, default=200)
    parser.add_argument("--n-steps", type=int, default=15)
    parser.add_argument("--batch-size", type=int, help="users at once; default: all")
    parser.add_argument("--prompt-encoding", choices=("parts", "whole"), default="parts")
    parser.add_argument("--n-prompts", type=int, default=40, help="0: no language model")
    given = parser.parse_args(args)
    watches, steps = {}, []
    with TemporaryDirectory(prefix="rpp-benchmark-") as temp:
        data = EpisodeDataModule(
            "ml-100k",
            data_dir=temp,
            n_train_users=given.n_users,
            n_validation_users=1,
            n_test_users=1,
            batch_size=given.batch_size or given.n_users,
            lightgcn=LightGCNSettings(n_epochs=1),  # any vectors cost the same
        )
        for decoding, show_candidates in (("generate", True), ("likelihood", False)):
            model = RPP(
                n_steps=given.n_steps, prompt_encoding=given.prompt_encoding, n_static_prompts=1
            )
            watches[decoding] = learn(
                model,
                data,
                decoding,  # type: ignore[arg-type]  # a literal, lost in the tuple
                show_candidates=show_candidates,
            )
            steps = model.train_steps
    lines = [*table(watches, given.n_steps), ""]
    learner = {
        name: sum(seconds for part, seconds in watch.seconds.items() if part != LLM)
        for name, watch in watches.items()
    }
    for name, seconds in learner.items():
        reached = "reached" if seconds <= MOST_SECONDS else "not reached"
        lines.append(
            f"- `{name}`: {given.n_steps} steps of {given.n_users} users take {seconds:.1f} s"
            f" without the language model (wanted: {MOST_SECONDS}, {reached})."
        )
    if given.n_prompts:
        llm = HuggingFaceLanguageModel("smollm2-135m-instruct")
        each = language_model_seconds(llm, steps[len(steps) // 2], given.n_prompts)
        a_step, whole = learner["likelihood"] / given.n_steps, each * given.n_users
        share = a_step / (a_step + whole)
        reached = "reached" if share < MOST_SHARE else "not reached"
        lines.append(
            f"- SmolLM2 by `likelihood`: {each:.3f} s a user, measured on {given.n_prompts} prompts"
            f" of the middle step; extrapolated to {given.n_users} users {whole:.0f} s a step, of"
            f" which the learner adds {a_step:.2f} s: a share of {share:.2%} (wanted: below"
            f" {MOST_SHARE:.0%}, {reached})."
        )
    lines += [
        "",
        f"`python benchmarks/training.py`, prompts encoded by {given.prompt_encoding}, batches of"
        f" {data.batch_size}, PyTorch {torch.__version__} with {torch.get_num_threads()} threads,"
        f" Python {platform.python_version()}; load {os.getloadavg()[0]:.1f} at the end.",
    ]
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if given.out:
        given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
