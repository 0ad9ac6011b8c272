"""What the tests of requests share: a fitted policy of made-up users, a model that can be down."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.callbacks import ModelCheckpoint
from pipeline import PATTERNS, MadeUpUsers, title, trainer

from rpp.callbacks.environment import RewardEnvironment
from rpp.data.datamodule import EpisodeDataModule
from rpp.learners.base import PromptLearner
from rpp.llms.base import LanguageModel
from rpp.types import LanguageModelError


class ByNumber(LanguageModel):
    """Likes titles with low numbers; likes none that has no number; fails where it is told to.

    Args:
        down: Whether every call fails.
        fails_on: A text; prompts that hold it get no answer.
    """

    def __init__(self, down: bool = False, fails_on: str = "\0") -> None:
        super().__init__()
        self.down = down
        self.fails_on = fails_on

    @property
    def fingerprint(self) -> str:
        return "by number"

    def generate(self, prompts: Sequence[str]) -> list[str | LanguageModelError]:
        raise NotImplementedError

    def score(self, prompts, continuations, response_prefixes=None):
        self.usage.prompt_tokens += 10 * len(prompts)
        return [
            LanguageModelError("nobody there")
            if self.down or self.fails_on in prompt
            else [-float("".join(filter(str.isdigit, text)) or 1000) for text in texts]
            for prompt, texts in zip(prompts, continuations, strict=True)
        ]


def by_number(**options: object) -> RewardEnvironment:
    return RewardEnvironment(
        ByNumber(**options),
        "likelihood",
        show_candidates=False,
        per_character=False,
        cache_dir=None,
    )


def fit(
    learner: PromptLearner,
    folder: Path,
    environment: RewardEnvironment,
    users: EpisodeDataModule | None = None,
) -> Path:
    """Fit for an epoch; the checkpoint."""
    best = ModelCheckpoint(folder, filename="best")
    users = users or MadeUpUsers(n_train=12, n_validation=6, n_test=8)
    trainer(folder, environment, best, max_epochs=1).fit(learner, users)
    return folder / "best.ckpt"


def made_up(*numbers: int) -> list[str]:
    """Titles of made-up films."""
    return [title(number) for number in numbers]


SETTINGS = {"patterns": PATTERNS, "n_steps": 2, "hidden_dim": 8, "n_static_prompts": 1}
