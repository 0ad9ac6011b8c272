"""What a prompt method of the comparison is: it learns, if it does, then ranks test users.

Recommenders without a language model are in ``rpp.baselines``; these methods ask one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rpp.data.datamodule import EpisodeDataModule
from rpp.prompts.compose import compose
from rpp.prompts.patterns import Patterns
from rpp.prompts.refine import Refiner
from rpp.ranker import Ranker
from rpp.types import Episode, Ranking

Ranks = Callable[[Sequence[Episode]], list[Ranking]]
"""From ``B`` episodes to a ranking of each; their targets are not looked at."""


@dataclass(frozen=True)
class Task:
    """What every prompt method is given.

    Attributes:
        data: The users; ``episodes("train")`` and ``episodes("validation")`` may decide things.
        patterns: The sentences.
        ranker: The language model that ranks, with its cache and counters.
        n_steps: Steps of an RPP episode: what other methods may spend as well.
        seed: Of everything a method draws.
        refiner: Rewrites sentences where a method wants that; ``None``: there is none.
    """

    data: EpisodeDataModule
    patterns: Patterns
    ranker: Ranker
    n_steps: int
    seed: int = 0
    refiner: Refiner | None = None

    def ask(
        self,
        episodes: Sequence[Episode],
        patterns: Sequence[Patterns],
        actions: Sequence[Sequence[int]],
        lengths: Sequence[int],
    ) -> list[Ranking]:
        """Put prompts together and rank, all in one call, so that they share work.

        Args:
            episodes: ``B`` users; one may stand there several times.
            patterns: The sentences of each of the ``B`` prompts.
            actions: ``(B, P)`` indices into them.
            lengths: Interactions each prompt shows at most.
        """
        prompts = [
            compose(
                [episode], sentences, [chosen], [length],
                self.ranker.display, fits=self.ranker.fits,
            )[0]
            for episode, sentences, chosen, length in zip(
                episodes, patterns, actions, lengths, strict=True
            )
        ]  # fmt: skip
        return self.ranker.rank(prompts, episodes)


class PromptMethod(ABC):
    """A way to choose prompts; subclass it with a ``name`` and :meth:`learn`."""

    name: str
    """Short name in tables."""

    peeks: bool = False
    """Whether it looks at the test targets: an oracle, marked as one wherever it is reported."""

    n_prompts_reused: int = 0
    """Prompts of a former run behind what :meth:`learn` found there and used again."""

    @abstractmethod
    def learn(self, task: Task) -> Ranks:
        """Decide what is the same for all users, on training and validation users.

        Returns:
            The ranking of any users' candidates.
        """

    @abstractmethod
    def n_calls(self, task: Task, n_users: int) -> int:
        """Largest number of calls to the language model, for the budget said beforehand.

        Args:
            task: The task.
            n_users: Test users.
        """
