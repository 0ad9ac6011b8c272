"""The command line of the audit: the configuration of a fit and the group ``audit``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from data_prep.prepare import prepare
from rpp import cli
from rpp.audit.module import Audit, Plan
from rpp.audit.report import publish
from rpp.baselines.evidence import RecommenderEvidence
from rpp.callbacks.environment import RewardEnvironment
from rpp.data.datamodule import EpisodeDataModule
from rpp.data.episodes import load_episodes
from rpp.data.lightgcn import LightGCNSettings
from rpp.learners.client import RankerClient
from rpp.types import InputError, LanguageModelStop


class AuditCLI(cli.CLI):
    """The configuration of a fit, which is read, but not run."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the group ``audit``."""
        super().add_arguments_to_parser(parser)
        parser.add_class_arguments(Plan, "audit")

    def before_instantiate_classes(self) -> None:
        """No checkpoint is needed."""


def main(args: ArgsType = None) -> LightningCLI:
    """Ask, and report; ``args`` replaces the command line in tests."""
    read = cli.main(args, AuditCLI, run=False, save_config_callback=None)
    run(read.model, read.datamodule, read.trainer, read.config_init)
    return read


def run(model: Any, data: Any, trainer: Any, config: Any) -> None:
    """Ask training users; what a budget has ended is reported as far as it came.

    Args:
        model: Has the options.
        data: Has the users.
        trainer: Runs the audit, with the reward environment.
        config: Has the name of the run and the plan.

    Raises:
        InputError: If the configuration is none of a learner that asks a language model.
    """
    if not isinstance(model, RankerClient) or not isinstance(data, EpisodeDataModule):
        raise InputError(
            "an audit needs a learner's configuration: give that of a fit, such as conf/rpp.yaml"
        )
    plan: Plan = config.audit
    prepared = _prepared(data, plan)
    users = plan.users(load_episodes(prepared, "train"))
    audit = Audit(model.patterns, users, plan.n_prompts, plan.seed)
    profiles = (user[0].profile for user in users)
    model.patterns.check_profiles(profiles, data.settings.name)
    trainer.loggers = []  # nothing is learnt, so nothing is logged
    environment = next(each for each in trainer.callbacks if isinstance(each, RewardEnvironment))
    if model.patterns.needs_evidence:
        audit.evidence = evidence_for(audit, prepared, data.lightgcn, environment.seed)
    folder, notes = Path("results", config.name), _notes(audit, data, environment)
    try:
        trainer.test(audit, verbose=False)
    except LanguageModelStop:
        publish(audit, folder, [*notes, "The budget ended it before all users were asked."])
        raise
    publish(audit, folder, notes)


def _prepared(data: EpisodeDataModule, plan: Plan) -> Path:
    """The folder of training users with several targets.

    It is one of its own if the configuration has fewer targets: that of the fit stays as it is.
    """
    settings = replace(data.settings, n_targets=max(data.settings.n_targets, plan.n_targets))
    own = data.folder.parent / "audit" / data.folder.name
    folder = data.folder if settings == data.settings else own
    prepare(settings, folder)
    return folder


def evidence_for(
    audit: Audit, folder: Path, lightgcn: LightGCNSettings, seed: int
) -> RecommenderEvidence:
    """Recommenders that have been fitted to none of the targets asked for.

    Args:
        audit: Has patterns and users.
        folder: The users' prepared folder.
        lightgcn: How collaborative vectors are trained, where they are needed.
        seed: Of the order among equal scores.

    Raises:
        TargetAccessError: If one of them has.
    """
    episodes = [episode for user in audit.users for episode in user]
    return RecommenderEvidence.read(audit.patterns.evidence, folder, seed, episodes, lightgcn)


def _notes(audit: Audit, data: EpisodeDataModule, environment: RewardEnvironment) -> list[str]:
    """A warning of users whom an adapter has learnt from."""
    users = [user[0].user_id for user in audit.users]
    n_learnt = environment.n_learnt_from(data.settings.name, users)
    if not n_learnt:
        return []
    return [
        f"The adapter may have learnt from the interactions of {n_learnt} of these {len(users)}"
        " users; prompts may do something else for users it does not know."
    ]
