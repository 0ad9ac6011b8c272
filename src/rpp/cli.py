"""The command line: ``python train.py {fit,validate,test,predict} --config conf/rpp.yaml``."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from pydoc import locate
from typing import Any, TypeVar

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import yaml
from jsonargparse import set_dumper, set_parsing_settings
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from transformers.utils.logging import disable_progress_bar

from rpp import help as usage
from rpp.callbacks.environment import RewardEnvironment
from rpp.callbacks.predictions import Predictions
from rpp.learners.base import PromptLearner
from rpp.personaliser import Personaliser
from rpp.predict_input import predict_file
from rpp.runs import WholeCheckpoints, check_trainer, only_fit, resolve_checkpoint
from rpp.terminal import SafeStream, log_progress, print_result
from rpp.types import InputError, LanguageModelError
from rpp.yaml_files import read_yaml

Result = TypeVar("Result")


class Parser(LightningArgumentParser):
    """Writes a configuration as it was read: it has been checked, and nested classes take long."""

    def dump(self, *args: Any, skip_validation: bool = True, **options: Any) -> str:
        """Give the text of a configuration."""
        text: str = super().dump(*args, skip_validation=skip_validation, **options)
        return text

    def save(self, *args: Any, skip_validation: bool = True, **options: Any) -> None:
        """Write it to a file."""
        super().save(*args, skip_validation=skip_validation, **options)


class CLI(LightningCLI):
    """LightningCLI with the reward environment as a key of its own and guarded checkpoints."""

    def __init__(
        self,
        model: type[LightningModule],
        data: type[LightningDataModule],
        *,
        args: ArgsType = None,
        **options: Any,
    ) -> None:
        given = args if isinstance(args, list) else sys.argv[1:]
        self._asked = next(iter(given), "")
        super().__init__(model, data, args=args, **options)

    def _add_instantiators(self) -> None:
        """Leave hyperparameters to their classes: to find them takes a text of everything."""

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one that is asked for, or all: each has a parser that takes long to make."""
        known = super().subcommands()
        return {self._asked: known[self._asked]} if self._asked in known else known

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``--name`` and the group ``environment``."""
        parser.add_argument(
            "--name", type=str, default="rpp", help="Names the run's logs, checkpoints and results."
        )
        parser.add_argument(
            "--input",
            type=str | None,
            default=None,
            help="Only for predict: JSON lines with history, candidates, user and profile, in the"
            " place of the data set's test users.",
        )
        parser.add_lightning_class_args(RewardEnvironment, "environment")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the command line.

        Raises:
            InputError: What the parser refuses, in one sentence.
        """
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            given = args if isinstance(args, list) else sys.argv[1:]
            parsers = getattr(self, "_subcommand_parsers", {})  # a command of its own has none
            known = parsers.get(next(iter(given), ""), parser).get_defaults()
            sentence = usage.explained(str(error), known.keys(), given)
            raise InputError(str(_mistake(error) or sentence)) from error

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Show progress by tqdm, which the ranker's own bar can stand below."""
        if config.get("enable_progress_bar") is not False:
            callbacks = [*callbacks, TQDMProgressBar()]
        return super()._instantiate_trainer(config, callbacks)

    def _set_seed(self) -> None:
        """Refuse a seed that not every generator takes.

        Raises:
            InputError: If it is out of range.
        """
        seed = self._get(self.config, "seed_everything")
        if isinstance(seed, int) and not isinstance(seed, bool) and not 0 <= seed < 2**32:
            raise InputError(f"seed_everything is {seed}: give a number from 0 to {2**32 - 1}")
        super()._set_seed()

    def _parse_ckpt_path(self) -> None:
        """Leave the checkpoint alone: our settings come from the configuration."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it; of several processes of a fit the first holds the run's folder."""
        if self._get(self.config, "input") is not None:
            self._predict_input(subcommand)
            return
        alone = subcommand == "fit" and self.trainer.is_global_zero and not self._is_trial()
        with only_fit(self.config[subcommand].name) if alone else nullcontext():
            super()._run_subcommand(subcommand)

    def _predict_input(self, subcommand: str) -> None:
        """Rank for the users of a file.

        Raises:
            InputError: If another subcommand than ``predict`` is given a file.
        """
        if subcommand != "predict" or not isinstance(self.model, PromptLearner):
            raise InputError(f"input is for the predict of a learner: leave it out of {subcommand}")
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        environment = next(each for each in callbacks if isinstance(each, RewardEnvironment))
        target = next((each.path for each in callbacks if isinstance(each, Predictions)), None)
        config = self.config[subcommand]
        device = self.trainer.strategy.root_device
        with Personaliser.load(config.ckpt_path, environment, device) as personaliser:
            if personaliser.learner.patterns.fingerprint != self.model.patterns.fingerprint:
                raise InputError(
                    f"the checkpoint belongs to other patterns than {self.model.patterns_file}:"
                    " use its training's, or fit again"
                )
            target = target or Path("results", config.name, "predictions.jsonl")
            n_users = predict_file(personaliser, Path(config.input), target)
        print_result(f"{n_users} users written to {target}")

    def before_fit(self) -> None:
        """Refuse options that cannot be honoured; write checkpoints whole."""
        if self._is_trial():
            return
        if isinstance(self.model, PromptLearner):
            check_trainer(self.trainer)
        is_fresh = self.config_init[self.subcommand].get("ckpt_path") is None
        self.trainer.strategy.checkpoint_io = WholeCheckpoints(is_fresh)

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


class SaveConfig(SaveConfigCallback):
    """Writes the configuration to the folder of the logs; nowhere without one."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it once, if something is logged."""
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)


def main(args: ArgsType = None, cli_class: type[CLI] = CLI, **options: Any) -> LightningCLI:
    """Run one subcommand.

    Args:
        args: In tests, in place of the command line.
        cli_class: What reads the configuration.
        options: Further ones of LightningCLI.
    """
    _quieten()
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)  # a config's root is `fit`
    set_dumper("yaml", _yaml)
    settings: dict[str, Any] = {"save_config_callback": SaveConfig} | options
    return cli_class(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"parser_mode": "omegaconf+", "exit_on_error": False},
        parser_class=Parser,
        args=args,
        **settings,
    )


def _yaml(data: Any) -> str:
    """YAML by libyaml where it is there: the parser writes each nested class many times."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text: str = yaml.dump(data, Dumper=dumper, sort_keys=False, allow_unicode=True)
    return text


def check_yaml(arguments: Sequence[str]) -> None:
    """Read the YAML files of a command line, so that a mistake is told with file and line.

    These are the files named by ``--config`` and those that stand for a part of the configuration,
    such as ``--data FILE.yaml``.

    Raises:
        InputError: If one is missing, empty, is not YAML in UTF-8, or gives a key twice.
    """
    names: dict[str, str] = {}
    for before, word in pairwise(["", *arguments]):
        option, _, value = word.partition("=") if word.startswith("-") else (before, "", word)
        is_config = option in ("-c", "--config")
        if not value or not (is_config or value.endswith((".yaml", ".yml"))):
            continue
        try:
            content = read_yaml(Path(value))
            if content is None:
                raise InputError(f"{value} is empty: write settings into it, or leave it out")
            if is_config and isinstance(content, dict) and "name" in content:
                names[value] = content["name"]
        except FileNotFoundError:
            if is_config:
                raise InputError(f"there is no configuration file {value}") from None
    if not any(word.partition("=")[0] == "--name" for word in arguments):
        _tell_of_names(names)


def _tell_of_names(names: Mapping[str, str]) -> None:
    """Say that an overlay of the project names the run in place of a file of the user's own."""
    own = [file for file in names if Path(file).parts[0] != "conf"]
    last = list(names)[-1] if names else ""
    if own and last not in own:
        log_progress(
            f"The run is called {names[last]} as in {last}, not {names[own[-1]]} as in {own[-1]}:"
            " --name gives it a name of its own"
        )


def run(args: list[str] | None = None) -> LightningCLI:
    """Run the command line; ``--help`` prints the options most runs use."""
    usage.answer_help(sys.argv[1:] if args is None else args)
    if args is None:
        sys.argv = ["--help" if word == usage.ALL else word for word in sys.argv]
    return reporting_mistakes(main, args)


def reporting_mistakes(
    command: Callable[[list[str] | None], Result], args: list[str] | None
) -> Result:
    """Run a command; what the user can mend becomes one sentence and exit code 2.

    SIGTERM ends it like Ctrl-C: Lightning alone would wait for the end of a hook.

    Args:
        command: What runs it.
        args: In tests, in place of the command line.
    """
    if args is None:
        sys.stdout, sys.stderr = SafeStream(sys.stdout), SafeStream(sys.stderr)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        check_yaml(sys.argv[1:] if args is None else args)
        return command(args)
    except KeyboardInterrupt:
        log_progress("Stopped before anything was trained or tested: run the same command again")
        raise SystemExit(130) from None
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
        # the last: what Lightning's trainer is asked for and cannot do
        if isinstance(error, InputError | LanguageModelError | MisconfigurationException):
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
