"""What a prompt method of the comparison is: it learns, if it does, then ranks test users.

Recommenders without a language model are in ``rpp.baselines``; these methods ask one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from rpp.data.datamodule import EpisodeDataModule
from rpp.prompts.evidence import Evidence
from rpp.prompts.patterns import Patterns
from rpp.prompts.refine import Refiner
from rpp.ranker import Ranker
from rpp.rollout import Environment, Step
from rpp.types import Episode, Ranking

Ranks = Callable[[Sequence[Episode]], Sequence[Ranking]]
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
        evidence: Ranks the candidates for the pattern ``evidence``; ``None``: there is none.
    """

    data: EpisodeDataModule
    patterns: Patterns
    ranker: Ranker
    n_steps: int
    seed: int = 0
    refiner: Refiner | None = None
    evidence: Evidence | None = None

    @property
    def environment(self) -> Environment:
        """Patterns and ranker; sentences as they stand in the file."""
        return Environment(self.patterns, self.ranker, evidence=self.evidence)

    @property
    def manual(self) -> Environment:
        """The same without a choice: what the section ``manual`` of the patterns file says.

        Raises:
            InputError: If the patterns file has no manual prompt.
        """
        return self.learning([])

    def learning(self, names: Sequence[str]) -> Environment:
        """Patterns of which only some leave a choice; the others are the manual prompt's.

        Args:
            names: The patterns with a choice.
        """
        return replace(self.environment, patterns=self.patterns.learning(names))


class PromptMethod(ABC):
    """A way to choose prompts; subclass it with a ``name`` and :meth:`learn`."""

    name: str
    """Short name in tables."""

    is_oracle: bool = False
    """Whether it looks at the test targets; marked as an oracle wherever it is reported."""

    played: Sequence[Step] = ()
    """Steps of the users ranked last, for charts; of methods that play several."""

    played_patterns: Patterns | None = None
    """The options that the actions of these steps point into."""

    n_prompts_reused: int = 0
    """Prompts of a former run behind what :meth:`learn` found there and used again."""

    @abstractmethod
    def learn(self, task: Task) -> Ranks:
        """Decide what is the same for all users, on training and validation users.

        Returns:
            The ranking of any users' candidates.
        """

    @abstractmethod
    def max_calls(self, task: Task, n_users: int) -> int:
        """Largest number of calls to the language model, for the budget said beforehand.

        Args:
            task: The task.
            n_users: Test users.
        """

    def notes(self, ranks: Tensor) -> list[str]:
        """What has to be known to read its row.

        Args:
            ranks: Rank of every test user's target, ``(n_users,)``.
        """
        return []
