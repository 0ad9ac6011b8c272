"""The reward environment: the ranker's lifetime, and the budget of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from rpp.arguments import RecordsArguments, described
from rpp.baselines.evidence import RecommenderEvidence
from rpp.data.datamodule import EpisodeDataModule
from rpp.learners.client import RankerClient, Stage
from rpp.llms.base import LanguageModel
from rpp.llms.cache import ReplyCache, default_folder
from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.llms.tuned import n_learnt_from
from rpp.processes import ask_together, gather
from rpp.prompts.compose import Layout
from rpp.prompts.patterns import Patterns
from rpp.prompts.refine import Refiner
from rpp.ranker import Counters, Decoding, Ranker
from rpp.rollout import Environment
from rpp.terminal import print_result
from rpp.types import HELD_OUT, SPLITS, InputError, LanguageModelStop

SETTINGS = "environment settings"
"""Key of a checkpoint: class and arguments, or why they cannot be written down."""

N_CALIBRATION = 8
"""Number of prompts for estimating time and tokens; the stage needs them anyway."""


class RewardEnvironment(RecordsArguments, Callback):
    """Owns the ranker: a frozen language model that turns prompts into rankings.

    The model is not a submodule: it is in no checkpoint, no optimizer and no DDP group.

    Args:
        llm: The language model; only needed by modules that use a ranker.
        decoding: ``generate``: free text, parsed (the paper). ``constrained``: only unused
            identifiers can be generated. ``first_token``: candidates by the log-probability of
            their identifier as first token. ``likelihood``: by that of their title as answer.
        show_candidates: Whether the prompt lists the candidates; without them ``likelihood`` is
            free of position bias by construction.
        per_character: Whether ``likelihood`` divides a title's log-probability by its length;
            not for a model tuned on titles.
        layout: ``paper``, or ``history_first``, which gives prompts longer common prefixes.
        cache_dir: Folder of the reply cache; ``auto`` is ``replies`` in ``$RPP_CACHE`` or
            ``~/.cache/rpp``, ``null``: no cache on disk.
        cache_gb: Size limit of that folder, in 10^9 bytes; least recently used replies are dropped
            first.
        memory_gb: Memory for forward passes of a model in this process besides its weights, in
            10^9 bytes; by default most of a GPU's free memory, or a quarter of main memory.
        max_calls: Calls to the language model after which the run stops, with a checkpoint or
            the table so far; cached replies are free. Several learner processes divide the
            number; the first to reach its share ends the run.
        seed: Of the order in which candidates missing from a reply are appended.
        refiner: RPP+: the language model that rewrites every sentence the agents can choose, once.
            ``same`` is the ranker's own, whose weights are not loaded twice. Its calls, at most
            one per sentence, count like the ranker's. ``null`` is RPP: sentences are not
            rewritten.
        refine_draw: Another number gives other rewritings.
    """

    def __init__(
        self,
        llm: LanguageModel | None = None,
        decoding: Decoding = "generate",
        show_candidates: bool = True,
        per_character: bool = True,
        layout: Layout = "paper",
        cache_dir: str | None = "auto",
        cache_gb: float | None = 2.0,
        memory_gb: float | None = None,
        max_calls: int | None = None,
        seed: int = 0,
        refiner: LanguageModel | Literal["same"] | None = None,
        refine_draw: int = 0,
    ) -> None:
        limits = {"cache_gb": cache_gb, "memory_gb": memory_gb, "max_calls": max_calls}
        for name, limit in limits.items():
            if limit is not None and limit <= 0:
                raise InputError(f"environment.{name} is {limit}: choose more than 0, or null")
        self.llm = llm
        self.decoding: Decoding = decoding
        self.show_candidates = show_candidates
        self.per_character = per_character
        self.layout: Layout = layout
        self.cache_dir = cache_dir
        self.cache_gb = cache_gb
        self.memory_gb = memory_gb
        self.max_calls = max_calls
        self.seed = seed
        self.refiner = refiner
        self.refine_draw = refine_draw
        self.ranker: Ranker | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Build the ranker on the trainer's device and hand it to the module.

        Raises:
            InputError: If the module needs a language model and none is given.
        """
        if not isinstance(pl_module, RankerClient):
            return
        if self.ranker is None:
            self.ranker = self.make_ranker(
                trainer.strategy.root_device, trainer.global_rank, trainer.world_size
            )
            self._warn_of_learnt_users(trainer)
        pl_module.ranker = self.ranker
        if pl_module.evidence is None and pl_module.patterns.needs_evidence:
            users = [e for split in SPLITS for e in pl_module.data.episodes(split)]
            pl_module.evidence = RecommenderEvidence.read(
                pl_module.patterns.evidence, pl_module.data.folder, self.seed, users
            )
        if self.refiner is not None:
            pl_module.refiner = self._make_refiner(pl_module.patterns, self.ranker)

    def make(self, patterns: Patterns, device: torch.device) -> Environment:
        """The environment of a process by itself, without a trainer.

        Args:
            patterns: The options.
            device: Where a model in this process works.
        """
        ranker = self.make_ranker(device)
        refiner = None if self.refiner is None else self._make_refiner(patterns, ranker)
        return Environment(patterns, ranker, refiner, is_tolerant=True)

    def make_ranker(self, device: torch.device, rank: int = 0, n_processes: int = 1) -> Ranker:
        """Make the ranker.

        Args:
            device: Where a model in this process works.
            rank: Number of the learner process.
            n_processes: Learner processes that share the budget.

        Raises:
            InputError: If no language model is given.
        """
        if self.llm is None:
            raise InputError(
                "no language model: set environment.llm.class_path, for example by --config"
                " conf/llm/smollm2.yaml"
            )
        for llm in {id(llm): llm for llm in (self.llm, self.refiner)}.values():
            if isinstance(llm, HuggingFaceLanguageModel):
                llm.place(device, self.memory_gb)
            if isinstance(llm, LanguageModel):
                llm.share(n_processes)
        folder = None if self.cache_dir is None else Path(self.cache_dir).expanduser()
        if self.cache_dir == "auto":
            folder = default_folder()
        return Ranker(
            self.llm,
            self.decoding,
            show_candidates=self.show_candidates,
            per_character=self.per_character,
            layout=self.layout,
            seed=self.seed,
            cache=ReplyCache(folder, self.cache_gb),
            max_calls=self._own_calls(rank, n_processes),
        )

    def _warn_of_learnt_users(self, trainer: Trainer) -> None:
        """Warn if an adapter was tuned on validation or test users."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, EpisodeDataModule):
            return
        held_out = [e.user_id for s in HELD_OUT for e in data.episodes(s)]
        if n := self.n_learnt_from(data.settings.name, held_out):
            rank_zero_warn(
                f"the adapter {self.adapter} may have learnt from the training interactions of {n}"
                f" of the {len(held_out)} validation and test users: tune one that leaves them out"
                " (conf/llm_tuning, with the same seed and numbers of users), or say so with the"
                " results"
            )

    @property
    def adapter(self) -> str | None:
        """The adapter of a language model in this process."""
        return self.llm.adapter if isinstance(self.llm, HuggingFaceLanguageModel) else None

    def n_learnt_from(self, data: str, user_ids: Sequence[str]) -> int:
        """Number of the given users of a data set whom the adapter may have been tuned on."""
        return 0 if self.adapter is None else n_learnt_from(self.adapter, data, user_ids)

    def _own_calls(self, rank: int, n_processes: int) -> int | None:
        """This process's share of ``max_calls``."""
        if self.max_calls is None:
            return None
        return self.max_calls // n_processes + (rank < self.max_calls % n_processes)

    def _make_refiner(self, patterns: Patterns, ranker: Ranker) -> Refiner:
        """A refiner; it shares the ranker's model if both are the same."""
        llm = ranker.llm
        if isinstance(self.refiner, LanguageModel) and self.refiner.fingerprint != llm.fingerprint:
            llm = llm.beside(self.refiner)
        return Refiner(llm, patterns, ranker.display.answer, self.refine_draw)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the settings down, so that the policy can be used as it was trained."""
        try:
            checkpoint[SETTINGS] = described(self)
        except InputError as error:  # a model made by hand, of functions for example
            checkpoint[SETTINGS] = str(error)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the budget before the fit begins."""
        self._agree_on_sentences(trainer, pl_module)
        self._announce(trainer, pl_module, "fit")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the budget before the test begins."""
        self._agree_on_sentences(trainer, pl_module)
        self._announce(trainer, pl_module, "test")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Agree on the refined sentences."""
        self._agree_on_sentences(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Agree on the refined sentences."""
        self._agree_on_sentences(trainer, pl_module)

    def _agree_on_sentences(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first of several learner processes asks the refiner; all use its sentences."""
        refiner = pl_module.refiner if isinstance(pl_module, RankerClient) else None
        if refiner is None or trainer.world_size == 1:
            return
        ask_together(lambda: refiner.refinements if trainer.is_global_zero else {})
        refiner.recall(gather(refiner.answers)[0])

    def _announce(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        """Print the budget: maximum calls; tokens and time estimated from a few prompts."""
        if self.ranker is None or not isinstance(pl_module, RankerClient):
            return
        pl_module.calibrate(stage, 1)  # loads the weights
        before = self.ranker.counters
        started = perf_counter()
        pl_module.calibrate(stage, N_CALIBRATION)
        seconds = (perf_counter() - started) / trainer.world_size  # all ask at the same time
        after = self.ranker.counters
        if trainer.is_global_zero:
            text = budget(pl_module.max_calls(stage), before, after, seconds, self.max_calls)
            print_result(text)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the cost of the run so far."""
        if self.ranker is None or not isinstance(pl_module, RankerClient):
            return
        values = all_counters(self.ranker).as_dict()
        if pl_module.refiner is not None:
            values |= {name: float(count) for name, count in pl_module.refiner.counts.items()}
        for name, value in values.items():
            pl_module.log(f"environment/{name}", value, on_step=True, on_epoch=False)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Print how to continue what a budget or the user has stopped."""
        stopped = isinstance(exception, LanguageModelStop | KeyboardInterrupt)
        if stopped and trainer.is_global_zero:
            print_result(self._how_to_continue(trainer))
        if self.ranker is not None:  # teardown is not called; the module still reads the counters
            self.ranker.llm.close()
            self.ranker = None

    def _how_to_continue(self, trainer: Trainer) -> str:
        """From the last epoch, with cached replies.

        A checkpoint within an epoch would make the next fit play its first users again.
        """
        fitting = trainer.state.fn == "fit" and trainer.current_epoch > 0
        command = f"the same command{' with --ckpt_path last' if fitting else ''}"
        if self.cache_dir is None:
            where = "from the last whole epoch" if fitting else "from the beginning"
            return f"No answer is kept without environment.cache_dir: {command} goes on {where}"
        return f"Every answer is kept: {command} comes back to here without asking"

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Free the language model and close the cache."""
        if self.ranker is not None:
            self.ranker.llm.close()
            self.ranker = None
        if isinstance(self.refiner, LanguageModel):
            self.refiner.close()
        if isinstance(pl_module, RankerClient):
            pl_module.ranker = pl_module.refiner = pl_module.evidence = None


def budget(
    n_calls: int | None, before: Counters, after: Counters, seconds: float, max_calls: int | None
) -> str:
    """The budget of a stage, as a sentence.

    Args:
        n_calls: Maximum number of calls; ``None`` if unlimited.
        before: Counters before some prompts were asked.
        after: Counters after them.
        seconds: Time they took.
        max_calls: The user's limit.
    """
    limits = [n for n in (n_calls, max_calls) if n is not None]
    text = f"Budget: at most {min(limits):,} calls" if limits else "Budget: calls without limit"
    fresh = after.calls - before.calls
    if not fresh:
        return f"{text}; the first {after.cache_hits - before.cache_hits} prompts are in the cache."
    tokens = after.prompt_tokens - before.prompt_tokens, after.reply_tokens - before.reply_tokens
    if limits:
        hours = timedelta(seconds=round(min(limits) * seconds / fresh))
        price = priced(min(limits) * (after.cost - before.cost) / fresh)
        return (
            f"{text}, {_in_words(tokens, min(limits) / fresh)} and {hours} hours{price} by"
            f" the first {fresh}; what the cache knows is free."
        )
    return f"{text}, each {_in_words(tokens, 1 / fresh)}, {seconds / fresh:.2f} s."


def _in_words(tokens: tuple[int, int], scale: float) -> str:
    """Prompt and reply tokens, scaled; a model of the user's own need not count them."""
    if not any(tokens):
        return "an unknown number of tokens"
    read, written = (f"{n * scale:,.0f}" for n in tokens)
    return f"about {read} prompt and {written} reply tokens"


def all_counters(ranker: Ranker) -> Counters:
    """Counters summed over the learner processes."""
    of_each = gather(asdict(ranker.counters))
    return Counters(**{name: sum(own[name] for own in of_each) for name in of_each[0]})


def priced(cost: float) -> str:
    """The cost, for the end of a sentence; empty without prices."""
    return f" at a cost of {cost:.2f}" if cost else ""
