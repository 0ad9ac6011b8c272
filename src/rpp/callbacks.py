"""What surrounds the learner: the reward environment, logs, the results table, predictions."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from rich.table import Table
from torch import Tensor

from rpp import charts
from rpp.data.datamodule import EpisodeDataModule
from rpp.llms.base import LanguageModel
from rpp.llms.cache import ReplyCache, default_folder
from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.llms.tuned import n_learnt_from
from rpp.metrics import CHANCE, METRICS, Interval, chance_row, mean_interval, paired_difference
from rpp.processes import ask_together, gather, gather_rows
from rpp.prompts.compose import Layout
from rpp.prompts.refine import Refiner, table
from rpp.ranker import Counters, Decoding, Ranker
from rpp.terminal import abbreviated, say, score_table
from rpp.types import HELD_OUT, InputError, LanguageModelStop

N_CALIBRATION = 8
"""Prompts by which time and tokens are estimated; the stage asks them anyway."""

STATIC = "best static prompt"

ROWS = ("RPP", "RPP, first step", "RPP, sampled", "RPP, exchanged", "random policy", STATIC)
"""Rows of the test table; the module's results have others as well."""


class RewardEnvironment(Callback):
    """Owns the ranker's life: a frozen language model that turns prompts into rankings.

    The model is no submodule of anything: it is in no checkpoint, no optimizer and no DDP group.

    Args:
        llm: The language model; only a module that asks for a ranker needs one.
        decoding: ``generate``: free text, parsed (the paper). ``constrained``: only unused
            identifiers can be written. ``first_token``: candidates by the log-probability of
            their identifier as first token. ``likelihood``: by that of their title as answer.
        show_candidates: Whether the prompt lists the candidates; without them ``likelihood`` is
            free of position bias by construction.
        per_character: Whether ``likelihood`` divides a title's log-probability by its length;
            not for a model tuned on titles.
        layout: ``paper``, or ``history_first``, which lets prompts share more of their work.
        cache_dir: Folder of the replies already paid for; ``auto`` is ``replies`` in
            ``$RPP_CACHE`` or ``~/.cache/rpp``, ``null`` keeps none.
        cache_gb: Size of that folder, in 10^9 bytes, above which the replies not used for longest
            are dropped.
        memory_gb: Memory that passes of a model in this process may take beside its weights, in
            10^9 bytes; by default most of a GPU's free memory, or a quarter of the computer's.
        max_calls: Calls to the language model after which the run stops, with a checkpoint or
            the table so far; answers from the cache are free. Of several learner processes each
            may make its part of them, and the first to have made it ends the run.
        seed: Of the order in which candidates that a reply leaves out are appended.
        refiner: RPP+: the language model that rewrites every sentence the agents can choose, once.
            ``same`` is the ranker's own, whose weights are not loaded twice. Its calls, as many as
            there are sentences at most, count like the ranker's. ``null`` is RPP: sentences stay
            as they are.
        refine_draw: Another number lets the refiner find other words.
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
            InputError: If the module needs a language model and there is none.
        """
        if not hasattr(pl_module, "ranker"):
            return
        if self.ranker is None:
            if self.llm is None:
                raise InputError(
                    "no language model: set environment.llm.class_path, for example by --config"
                    " conf/llm/smollm2.yaml"
                )
            for llm in {id(llm): llm for llm in (self.llm, self.refiner)}.values():
                if isinstance(llm, HuggingFaceLanguageModel):
                    llm.place(trainer.strategy.root_device, self.memory_gb)
                if isinstance(llm, LanguageModel):
                    llm.share(trainer.world_size)
            folder = None if self.cache_dir is None else Path(self.cache_dir).expanduser()
            if self.cache_dir == "auto":
                folder = default_folder()
            self.ranker = Ranker(
                self.llm,
                self.decoding,
                show_candidates=self.show_candidates,
                per_character=self.per_character,
                layout=self.layout,
                seed=self.seed,
                cache=ReplyCache(folder, self.cache_gb),
                max_calls=self._own_calls(trainer.global_rank, trainer.world_size),
            )
            self._warn_of_learnt_users(trainer)
        pl_module.ranker = self.ranker  # type: ignore[assignment]
        if self.refiner is not None:
            self._refine(pl_module, self.ranker)

    def _warn_of_learnt_users(self, trainer: Trainer) -> None:
        """Say so where an adapter has learnt from users who are to be held out."""
        data = getattr(trainer, "datamodule", None)
        adapter = self.llm.adapter if isinstance(self.llm, HuggingFaceLanguageModel) else None
        if adapter is None or not isinstance(data, EpisodeDataModule):
            return
        held_out = [e.user_id for s in HELD_OUT for e in data.episodes(s)]
        if n := n_learnt_from(adapter, data.settings.name, held_out):
            rank_zero_warn(
                f"the adapter {adapter} may have learnt from the training interactions of {n} of"
                f" the {len(held_out)} validation and test users: tune one that leaves them out"
                " (conf/llm_tuning, with the same seed and numbers of users), or say so with the"
                " results"
            )

    def _own_calls(self, rank: int, n_processes: int) -> int | None:
        """This process's part of ``max_calls``."""
        if self.max_calls is None:
            return None
        return self.max_calls // n_processes + (rank < self.max_calls % n_processes)

    def _refine(self, pl_module: Any, ranker: Ranker) -> None:
        """Hand a refiner to the module; a model like the ranker's is the ranker's."""
        if not hasattr(pl_module, "refiner"):
            raise InputError(
                f"{type(pl_module).__name__} chooses no sentences: set environment.refiner to null"
            )
        llm = ranker.llm
        if isinstance(self.refiner, LanguageModel) and self.refiner.fingerprint != llm.fingerprint:
            llm = llm.beside(self.refiner)
        pl_module.refiner = Refiner(
            llm, pl_module.patterns, ranker.display.answer, self.refine_draw
        )

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Say what the fit may cost before it begins."""
        self._agree_on_sentences(trainer, pl_module)
        self._announce(trainer, pl_module, "fit")

    def on_test_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Say what the test may cost before it begins."""
        self._agree_on_sentences(trainer, pl_module)
        self._announce(trainer, pl_module, "test")

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Agree on the refined sentences."""
        self._agree_on_sentences(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Agree on the refined sentences."""
        self._agree_on_sentences(trainer, pl_module)

    def _agree_on_sentences(self, trainer: Trainer, pl_module: Any) -> None:
        """Of several learner processes the first asks the refiner, and all send its sentences."""
        refiner: Refiner | None = getattr(pl_module, "refiner", None)
        if refiner is None or trainer.world_size == 1:
            return
        ask_together(lambda: refiner.refinements if trainer.is_global_zero else {})
        refiner.recall(gather(refiner.answers)[0])

    def _announce(self, trainer: Trainer, pl_module: Any, stage: Literal["fit", "test"]) -> None:
        """Print the budget: calls at most, and tokens and time by those of a few real prompts."""
        if self.ranker is None:
            return
        pl_module.calibrate(stage, 1)  # loads the weights
        before = self.ranker.counters
        started = perf_counter()
        pl_module.calibrate(stage, N_CALIBRATION)
        seconds = (perf_counter() - started) / trainer.world_size  # all ask at the same time
        after = self.ranker.counters
        if trainer.is_global_zero:
            text = budget(pl_module.n_calls(stage), before, after, seconds, self.max_calls)
            say(text)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what the run has cost so far."""
        if self.ranker is not None:
            for name, value in _of_all(self.ranker.counters).as_dict().items():
                pl_module.log(f"environment/{name}", value, on_step=True, on_epoch=False)
        if self.refiner is not None:
            for name, count in pl_module.refiner.counts.items():
                value = float(count)
                pl_module.log(f"environment/{name}", value, on_step=True, on_epoch=False)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Say how to go on when a budget ends a fit: from the last epoch, with what was answered.

        A checkpoint amid an epoch would make the next fit play its first users again.
        """
        fitting = trainer.state.fn == "fit" and trainer.is_global_zero
        if fitting and isinstance(exception, LanguageModelStop):
            last = " with --ckpt_path last" if trainer.current_epoch else ""
            say(f"Every answer is kept: the same command{last} comes back to here without asking")
        if self.ranker is not None:  # teardown is not called; the module still reads the counters
            self.ranker.llm.close()
            self.ranker = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Free the language model and close the cache."""
        if self.ranker is not None:
            self.ranker.llm.close()
            self.ranker = None
            pl_module.ranker = None  # type: ignore[assignment]
        if self.refiner is not None:
            if isinstance(self.refiner, LanguageModel):
                self.refiner.close()
            pl_module.refiner = None  # type: ignore[assignment]


def budget(
    n_calls: int | None, before: Counters, after: Counters, seconds: float, max_calls: int | None
) -> str:
    """What a stage may cost, in words.

    Args:
        n_calls: Calls at most; ``None`` if the stage has no end of its own.
        before: Counters before some prompts were asked.
        after: Counters after.
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
        read, written = (f"{min(limits) * n / fresh:,.0f}" for n in tokens)
        hours = timedelta(seconds=round(min(limits) * seconds / fresh))
        price = _priced(min(limits) * (after.cost - before.cost) / fresh)
        return (
            f"{text}, about {read} prompt and {written} reply tokens and {hours} hours{price} by"
            f" the first {fresh}; what the cache knows is free."
        )
    read, written = (f"{n / fresh:,.0f}" for n in tokens)
    return f"{text}, each about {read} prompt and {written} reply tokens, {seconds / fresh:.2f} s."


class PromptLog(Callback):
    """Writes to TensorBoard what the agents choose and what the language models answer.

    Args:
        n_samples: Prompts and replies shown after every epoch.
    """

    def __init__(self, n_samples: int = 2) -> None:
        self.n_samples = n_samples

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Every sentence before and after refinement."""
        board = _tensorboard(trainer)
        if board is not None and pl_module.refiner is not None:
            refinements = [*pl_module.refiner.refinements.values()]
            board.add_text("refinements", table(refinements))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Action distribution per agent, sample prompts and replies."""
        if not pl_module.steps:
            return
        actions = gather_rows(torch.cat([turn.actions for turn in pl_module.steps]))
        board = _tensorboard(trainer)
        if board is None:
            return
        epoch = trainer.current_epoch
        for k, name in enumerate(pl_module.patterns.names):
            n_actions = pl_module.patterns.n_actions[k]
            shares = torch.bincount(actions[:, k], minlength=n_actions).double() / len(actions)
            for action, share in enumerate(shares.tolist()):
                board.add_scalar(f"actions_{name}/{action}", share, epoch)
        last = pl_module.steps[-1]
        for k in range(min(self.n_samples, len(last.prompts))):
            target = last.episodes[k].candidates[last.episodes[k].target].title
            board.add_text(
                f"samples/{k}",
                f"prompt\n```\n{last.prompts[k].text}\n```\nreply"
                f" ({last.rankings[k].status})\n```\n{last.rankings[k].reply}\n```\n"
                f"target: {target}",
                epoch,
            )

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Which share of users ends at which option, per pattern (paper, Figures 11-14)."""
        if not pl_module.steps:
            return
        own = [prompt.n_history for turn in pl_module.steps for prompt in turn.prompts]
        shown = gather_rows(torch.tensor(own)).tolist()
        actions = gather_rows(torch.cat([turn.actions for turn in pl_module.steps]))
        board = _tensorboard(trainer)
        if board is None:
            return
        figure = charts.user_distribution(actions, shown, pl_module.patterns)
        board.add_figure("test/users_by_option", figure, trainer.current_epoch)


class ResultsTable(Callback):
    """Prints the test table and writes it as CSV and JSON with all that explains it.

    Args:
        folder: Where ``results.csv``, ``results.json`` and the charts go.
    """

    def __init__(self, folder: str = "results") -> None:
        self.folder = Path(folder)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how the fit ended and what to do next."""
        checkpoint = trainer.checkpoint_callback
        best = getattr(checkpoint, "best_model_path", "")
        score = getattr(checkpoint, "best_model_score", None)
        if best and score is not None and trainer.is_global_zero:
            say(
                f"Best validation NDCG@10 {float(score):.3f} after {trainer.current_epoch} epochs:"
                f" {best}\nNext: the same command with [bold]test[/] in place of fit"
            )

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Print and write the table of the users tested before a budget ended the run."""
        if isinstance(exception, LanguageModelStop) and trainer.testing and pl_module.results:
            self.on_test_end(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Print and write the table."""
        counters = _of_all(pl_module.ranker.counters)
        if not trainer.is_global_zero:
            return
        results: dict[str, Tensor] = pl_module.results
        n_candidates = pl_module.n_candidates
        rows = [name for name in ROWS if name in results]  # a stopped test lacks the exchange
        table = {
            name: {m: mean_interval(metric(results[name])) for m, metric in METRICS.items()}
            for name in rows
        }
        table[CHANCE] = chance_row(n_candidates)
        gains = {
            other: paired_difference(
                METRICS["ndcg@10"](results["RPP"]), METRICS["ndcg@10"](results[other])
            )
            for other in rows[1:]
        }
        Console().print(_rich_table(table, len(results["RPP"]), int(pl_module.inference_steps)))
        for name, gain in gains.items():
            Console().print(
                f"NDCG@10, RPP - {name}: {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]",
                highlight=False, markup=False,
            )  # fmt: skip
        lines = _notes(counters, results, pl_module.replies, pl_module.n_exchanged)
        if pl_module.learner != "RPP":
            lines.insert(0, f"In the rows RPP the learner is {pl_module.learner}.")
        if pl_module.refiner is not None:
            counts = pl_module.refiner.counts
            lines.append(
                f"RPP+: {counts['refined']} sentences are sent refined, {counts['kept']} as they"
                " were; so in every row of the table."
            )
        for line in lines:
            say(line)
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_csv(self.folder / "results.csv", table)
        by_step = [
            METRICS["ndcg@10"](results[f"RPP, step {k}"]).nanmean().item()
            for k in range(int(pl_module.inference_steps))
        ]
        record = {
            "date": datetime.now().astimezone().isoformat(timespec="seconds"),
            "inference_steps": int(pl_module.inference_steps),
            "n_users": len(results["RPP"]),
            "table": {
                name: {m: v._asdict() for m, v in row.items()} for name, row in table.items()
            },
            "ndcg@10_gain_of_RPP": {name: gain._asdict() for name, gain in gains.items()},
            "ndcg@10_by_step": by_step,
            "unnamed_target_not_retrieved": {
                m: metric(results["RPP, unnamed target not retrieved"]).nanmean().item()
                for m, metric in METRICS.items()
            },
            "exchanged_prompts": pl_module.n_exchanged,
            "static_prompt": asdict(pl_module.static),
            "target_position": torch.bincount(
                results["displayed position"].long(), minlength=n_candidates + 1
            )[1:].tolist(),
            "RPP_replies": dict(pl_module.replies),
            "counters": counters.as_dict(),
            "environment": pl_module.environment,
            "trained_with": pl_module.trained_with,
            "refinements": _refinements(pl_module.refiner),
            "seeds": {
                "data": pl_module.data_summary["settings"]["seed"],
                "policy": pl_module.policy_seed,
                "environment": pl_module.ranker.seed,
            },
            "belongs_to": pl_module.belonging,
        }
        (self.folder / "results.json").write_text(json.dumps(record, indent=2) + "\n")
        charts.methods(table).savefig(self.folder / "methods.png", bbox_inches="tight")
        say(f"Written to {self.folder}")


class Predictions(BasePredictionWriter):
    """Writes one JSON line per user: sentences, final prompt, ranking.

    Args:
        path: The file to write.
    """

    def __init__(self, path: str = "results/predictions.jsonl") -> None:
        super().__init__("epoch")
        self.path = Path(path)

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Write the file anew, every batch put together from the parts of all processes."""
        of_each = gather(predictions)
        if not trainer.is_global_zero:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            json.dumps(row, ensure_ascii=False)
            for parts in zip(*of_each, strict=True)
            for part in parts
            for row in part
        ]
        self.path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        say(f"{len(lines)} users written to {self.path}")


def _of_all(counters: Counters) -> Counters:
    """Summed over the learner processes."""
    of_each = gather(asdict(counters))
    return Counters(**{name: sum(own[name] for own in of_each) for name in of_each[0]})


def _tensorboard(trainer: Trainer) -> Any:
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            return logger.experiment
    return None


def _rich_table(table: dict[str, dict[str, Interval]], n_users: int, n_steps: int) -> Table:
    shown = score_table(
        f"{n_users} test users, {n_steps} steps; NDCG with 95 % interval, MRR, hit rate",
        ["method", *map(abbreviated, METRICS)],
    )
    for name, row in table.items():
        cells = {key: f"{value.mean:.3f}" for key, value in row.items()}
        if name != CHANCE:
            low, high = (f"{end:.3f}".lstrip("0") for end in row["ndcg@10"][1:])
            cells["ndcg@10"] += f" \\[{low} {high}]"
        shown.add_row(name, *cells.values())
    return shown


def _notes(
    counters: Counters, results: dict[str, Tensor], replies: Mapping[str, int], n_exchanged: int
) -> list[str]:
    answered = sum(replies[kind] for kind in ("valid", "repaired", "unusable"))
    shares = [
        f"{replies[kind] / max(answered, 1):.1%} {kind}"
        for kind in ("valid", "repaired", "unusable")
    ]
    lines = [
        f"Replies behind the RPP row: {', '.join(shares)}; {counters.failed} calls failed in all.",
        f"Cost: {counters.calls} calls, {counters.cache_hits} answered from the cache,"
        f" {counters.prompt_tokens} prompt and {counters.reply_tokens} reply tokens,"
        f" {counters.seconds:.0f} s{_priced(counters.cost)}.",
    ]
    if "RPP, exchanged" in results:
        lines.append(
            "RPP, exchanged: every user has the last prompt of another, drawn once;"
            f" {n_exchanged} of {len(results['RPP'])} got one unlike their own. What RPP gains over"
            " it beyond chance is personal."
        )
    if counters.shortened_histories:
        lines.append(
            f"{counters.shortened_histories} prompts did not fit the model's context and showed"
            " fewer past items than chosen."
        )
    missing = int(max(ranks.isnan().sum() for ranks in results.values()))
    if missing:
        lines.append(
            f"Up to {missing} test users got no answer and are left out of a row: run test again,"
            " what was answered is kept."
        )
    return lines


def _priced(cost: float) -> str:
    return f" at a cost of {cost:.2f}" if cost else ""


def _refinements(refiner: Refiner | None) -> list[dict[str, str]]:
    if refiner is None:
        return []
    return [asdict(each) | {"sent": each.sent} for each in refiner.refinements.values()]


def _write_csv(path: Path, table: dict[str, dict[str, Interval]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        ends = [f"{m}{end}" for m in METRICS for end in ("", "_low", "_high")]
        writer.writerow(["method", *ends])
        for name, row in table.items():
            writer.writerow([name, *(f"{x:.4f}" for value in row.values() for x in value)])
