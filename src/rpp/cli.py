"""The command line: ``python train.py {fit,validate,test,predict} --config conf/rpp.yaml``."""

from __future__ import annotations

import errno
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from pydoc import locate
from typing import Any

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import yaml
from jsonargparse import set_parsing_settings
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from transformers.utils.logging import disable_progress_bar

from rpp.callbacks.environment import RewardEnvironment
from rpp.types import InputError, LanguageModelError

CHECKPOINTS = "checkpoints"


class CLI(LightningCLI):
    """LightningCLI with the reward environment as a key of its own and guarded checkpoints."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``--name`` and the group ``environment``."""
        parser.add_argument(
            "--name", type=str, default="rpp", help="Names the run's logs, checkpoints and results."
        )
        parser.add_lightning_class_args(RewardEnvironment, "environment")

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Show progress by tqdm, which the ranker's own bar can stand below."""
        if config.get("enable_progress_bar") is not False:
            callbacks = [*callbacks, TQDMProgressBar()]
        return super()._instantiate_trainer(config, callbacks)

    @rank_zero_only  # of several processes one tidies up
    def before_fit(self) -> None:
        """Put the checkpoints of an earlier run aside: this run's ``last`` must be its own."""
        if self.config_init[self.subcommand].get("ckpt_path") is None and not self._is_trial():
            folder = Path(CHECKPOINTS, self.config_init[self.subcommand].name)
            for path in (folder / "best.ckpt", folder / "last.ckpt"):
                if path.is_file():
                    path.replace(path.with_suffix(".previous.ckpt"))

    def _is_trial(self) -> bool:
        """Whether nothing will be kept of this fit."""
        return bool(getattr(self.trainer, "fast_dev_run", False))

    def before_instantiate_classes(self) -> None:
        """Find the checkpoint before anything is loaded: never test untrained weights silently.

        Raises:
            InputError: If there is none, or a comparison is to be fitted.
        """
        config = self.config[self.subcommand]
        if not getattr(locate(config.model.class_path), "starts_from_checkpoint", True):
            if self.subcommand != "test":
                raise InputError(
                    f"a comparison fits what it needs itself: run `python train.py test` in place"
                    f" of {self.subcommand}"
                )
            return
        path = resolve_checkpoint(str(self.subcommand), config.get("ckpt_path"), config.name)
        config["ckpt_path"] = None if path is None else str(path)


def resolve_checkpoint(subcommand: str, given: str | None, name: str) -> Path | None:
    """The checkpoint a subcommand starts from.

    Args:
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.
        given: What ``--ckpt_path`` says: a file, ``best``, ``last`` or nothing. Nothing means a
            fresh start for ``fit`` and the best checkpoint for the others.
        name: Name of the run.

    Raises:
        InputError: If there is no such file.
    """
    if given is None and subcommand == "fit":
        return None
    asked = given or "best"
    path = Path(CHECKPOINTS, name, f"{asked}.ckpt") if asked in ("best", "last") else Path(asked)
    if not path.is_file():
        raise InputError(
            f"there is no checkpoint {path}: run `python train.py fit` with the same --config"
            " first, or name one with --ckpt_path"
        )
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"the checkpoint {path} is damaged or not one of ours and cannot be read: name another"
            " with --ckpt_path or fit again"
        ) from error
    return path


def main(args: ArgsType = None) -> LightningCLI:
    """Run one subcommand; ``args`` replaces the command line in tests."""
    _quieten()
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)  # a config's root is `fit`
    return CLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"parser_mode": "omegaconf+"},
        args=args,
    )


def check_yaml(arguments: Sequence[str]) -> None:
    """Parse the files named by ``--config``, so that a mistake is reported with file and line.

    Raises:
        InputError: If one is missing or is not YAML in UTF-8.
    """
    for before, word in pairwise(["", *arguments]):
        option, _, value = word.partition("=")
        name = (
            value if option in ("-c", "--config") else word if before in ("-c", "--config") else ""
        )
        if not name:
            continue
        try:
            yaml.safe_load(Path(name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"there is no configuration file {name}") from None
        except UnicodeDecodeError:
            raise InputError(f"{name} is not text in UTF-8: save it in that encoding") from None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = f", line {mark.line + 1}" if mark else ""
            raise InputError(f"{name}{line}: not valid YAML: {error.problem}") from None


def run(args: list[str] | None = None) -> LightningCLI:
    """Run the command line; what the user can mend becomes one sentence and exit code 2."""
    try:
        check_yaml(sys.argv[1:] if args is None else args)
        return main(args)
    except Exception as error:
        mistake = _mistake(error)
        if mistake is None:
            raise
        print(f"error: {mistake}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from error


def _mistake(error: BaseException | None) -> BaseException | None:
    """What the user can mend, also where the parser has wrapped it into an error of its own."""
    if isinstance(error, FileNotFoundError | PermissionError):
        return error
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return error
    while error is not None:
        if isinstance(error, InputError | LanguageModelError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _quieten() -> None:
    """Hide notices about other packages' insides and about what this project does on purpose."""
    for message in (
        ".*isinstance.treespec, LeafSpec.*",  # lightning 2.6.6 against torch 2.13
        ".*does not have many workers.*",  # episodes are small Python objects
        ".*exists and is not empty.*",  # a run of the same name replaces the former checkpoints
        ".*infer the batch indices.*",  # every process gets whole batches from its sampler
        ".*is_gradient_checkpointing.*",  # peft 0.21 reads a name that transformers 5 has renamed
    ):
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage()
    )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # misses a package it can do without
    disable_progress_bar()
