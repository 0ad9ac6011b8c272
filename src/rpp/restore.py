"""A checkpoint to a policy, its directory and its environment; no trainer is involved."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rpp.arguments import remade
from rpp.callbacks.environment import SETTINGS, RewardEnvironment
from rpp.data.directory import Directory
from rpp.learners import checkpoint as checkpoints
from rpp.learners.base import PromptLearner
from rpp.learners.portable import recall_evidence, unpack
from rpp.rollout import Environment
from rpp.runs import BEST, read_checkpoint
from rpp.types import InputError

log = logging.getLogger(__name__)


def find_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, or of the best one in the folder of a run.

    Raises:
        InputError: If there is none.
    """
    path = path / BEST if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}: fit first, or name another one")
    return read_checkpoint(path)


def restore_learner(
    checkpoint: Mapping[str, Any], device: torch.device
) -> tuple[PromptLearner[Any], Directory]:
    """The policy of a checkpoint, and the items and users of its vectors.

    Raises:
        InputError: If the checkpoint does not hold all that the policy needs.
    """
    provenance = checkpoints.read_provenance(checkpoint)
    carried = unpack(checkpoint)
    if isinstance(carried.learner, str):
        raise InputError(f"this policy cannot be used without its configuration: {carried.learner}")
    learner: PromptLearner[Any] = remade(
        carried.learner,
        PromptLearner,  # type: ignore[type-abstract]  # a subclass of it is made
    )
    learner.build_for(carried.vectors, carried.summary, device)
    checkpoints.check_provenance(provenance, learner.provenance)
    checkpoints.check_shapes(checkpoint["state_dict"], learner.state_dict())
    learner.load_state_dict(checkpoint["state_dict"])
    return learner.to(device).eval().requires_grad_(False), carried.directory


def restore_environment(
    checkpoint: Mapping[str, Any],
    learner: PromptLearner[Any],
    given: RewardEnvironment | None,
    device: torch.device,
    folder: Path,
) -> Environment:
    """The environment of a policy, with its recommenders as they were at the fit.

    Args:
        checkpoint: The policy's.
        learner: The policy.
        given: Language model and decoding; by default those of the fit.
        device: Where a model in this process works.
        folder: Where what recommenders learn is kept, if it can be written to.

    Raises:
        InputError: If none is given and the checkpoint has none, or if it does not hold what the
            recommenders are fitted to.
    """
    evidence = recall_evidence(checkpoint, learner.patterns, folder)
    if evidence is not None:
        evidence.fit()
    environment = (given or _settings(checkpoint)).make(learner.patterns, device)
    environment = replace(environment, evidence=evidence)
    trained_in = checkpoint.get(checkpoints.ENVIRONMENT, {})
    refiner = environment.refiner
    if refiner is not None and trained_in.get("refiner") == refiner.fingerprint:
        refiner.recall(checkpoint[checkpoints.REFINEMENTS])
    if changes := checkpoints.environment_changes(trained_in, environment.metadata):
        log.warning("this policy was trained in another environment (%s)", changes)
    return environment


def _settings(checkpoint: Mapping[str, Any]) -> RewardEnvironment:
    settings = checkpoint.get(SETTINGS, "it was fitted without RewardEnvironment")
    if isinstance(settings, str):
        raise InputError(
            f"the checkpoint does not tell its language model ({settings}): pass environment"
        )
    return remade(settings, RewardEnvironment)
