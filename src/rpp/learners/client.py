"""Modules that ask a language model: what the reward environment hands them and wants of them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

from lightning import LightningModule

from rpp.data.datamodule import EpisodeDataModule
from rpp.prompts.evidence import Evidence
from rpp.prompts.patterns import Patterns
from rpp.prompts.refine import Refiner
from rpp.ranker import Ranker
from rpp.rollout import Environment

Stage = Literal["fit", "test"]


class RankerClient(LightningModule):
    """A module that :class:`rpp.callbacks.environment.RewardEnvironment` gives a ranker.

    Attributes:
        patterns: The options its prompts are composed of.
        ranker: Handed over before a stage and taken back after it.
        refiner: Likewise; ``None`` is RPP without the plus.
        evidence: Likewise; ``None`` where no option names candidates.
    """

    patterns: Patterns

    def __init__(self) -> None:
        super().__init__()
        self.ranker: Ranker | None = None
        self.refiner: Refiner | None = None
        self.evidence: Evidence | None = None

    @property
    def data(self) -> EpisodeDataModule:
        """The trainer's data module."""
        data: EpisodeDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    @property
    def environment(self) -> Environment:
        """Patterns, ranker, refiner and evidence.

        Raises:
            RuntimeError: If no ranker was handed over.
        """
        if self.ranker is None:
            raise RuntimeError("no ranker: add the RewardEnvironment callback to the trainer")
        return Environment(self.patterns, self.ranker, self.refiner, self.evidence)

    @property
    def n_refined(self) -> int:
        """Calls of the refiner at most: one a sentence."""
        return 0 if self.refiner is None else len(self.refiner.patterns_of)

    @abstractmethod
    def max_calls(self, stage: Stage) -> int | None:
        """Largest number of calls to the language model; ``None`` if the stage has no end."""

    @abstractmethod
    def calibrate(self, stage: Stage, n_prompts: int) -> None:
        """Ask some prompts that the stage asks anyway: time and tokens are estimated by them."""
