"""The command line: ``python train.py {fit,validate,test,predict} --config conf/rpp.yaml``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jsonargparse import set_parsing_settings
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from rpp.callbacks import RewardEnvironment
from rpp.llms.base import LanguageModelError
from rpp.types import InputError

MODULES_DIR = "checkpoints"


class CLI(LightningCLI):
    """LightningCLI with the reward environment as a key of its own and guarded checkpoints."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``--name`` and the group ``environment``."""
        parser.add_argument(
            "--name", type=str, default="rpp", help="Names the run's logs, checkpoints and results."
        )
        parser.add_lightning_class_args(RewardEnvironment, "environment")

    def before_instantiate_classes(self) -> None:
        """Find the checkpoint before anything is loaded: never test untrained weights silently."""
        config = self.config[self.subcommand]
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
    path = Path(MODULES_DIR, name, f"{asked}.ckpt") if asked in ("best", "last") else Path(asked)
    if not path.is_file():
        raise InputError(
            f"there is no checkpoint {path}: run `python train.py fit` with the same --config"
            " first, or name one with --ckpt_path"
        )
    return path


def main(args: ArgsType = None) -> LightningCLI:
    """Run one subcommand; ``args`` replaces the command line in tests."""
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


def run(args: ArgsType = None) -> None:
    """Run the command line; what the user can mend becomes one sentence and exit code 2."""
    try:
        main(args)
    except (InputError, LanguageModelError) as error:
        _exit(error)
    except OSError as error:
        _exit(error)


def _exit(error: Any) -> None:
    print(f"error: {error}", file=sys.stderr)  # noqa: T201
    raise SystemExit(2)
