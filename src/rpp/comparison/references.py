"""Methods that learn nothing of a user: the manual prompt, enumeration, a random policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from rpp.comparison.base import PromptMethod, Ranks, Task
from rpp.evaluation import best_static_prompt, n_static_calls, random_choices
from rpp.prompts.static import StaticPrompt, draw_static_prompts, only_prompt
from rpp.rollout import Environment
from rpp.types import Episode, InputError, Ranking


class Manual(PromptMethod):
    """The prompt one would write by hand: section ``manual`` of the patterns file.

    Args:
        evidence: Number of its option of evidence, from 1. ``null``: the file's.
        name: Name in tables.
    """

    name = "manual prompt"

    def __init__(self, evidence: int | None = None, name: str = "manual prompt") -> None:
        self.evidence = evidence
        self.name = name

    def learn(self, task: Task) -> Ranks:
        """There is nothing to learn.

        Raises:
            InputError: If the patterns file has no manual prompt, or no such option.
        """
        if self.evidence is not None:
            task = replace(task, patterns=task.patterns.with_evidence(self.evidence))
        manual = task.manual
        return ranks_of(manual, only_prompt(manual.patterns))

    def max_calls(self, task: Task, n_users: int) -> int:
        """One a user."""
        return n_users


class Enumeration(PromptMethod):
    """The best of some static prompts by NDCG on the validation users (paper, section 4.1).

    Args:
        n_prompts: Prompts drawn from the product of the patterns' options.
        learn: The patterns it is chosen of; the others are the manual prompt's. ``null``: all.
        name: Name in tables; by default it tells the number.
    """

    def __init__(
        self, n_prompts: int = 8, learn: list[str] | None = None, name: str | None = None
    ) -> None:
        if n_prompts < 1:
            raise InputError(f"enumeration of {n_prompts} prompts: draw at least 1")
        self.n_prompts = n_prompts
        self.names = learn
        self.name = name or f"best of {n_prompts} static"
        self.chosen = ""

    def learn(self, task: Task) -> Ranks:
        """Ask every prompt for every validation user."""
        environment = task.environment if self.names is None else task.learning(self.names)
        patterns = environment.patterns
        drawn = draw_static_prompts(patterns, self.n_prompts, task.n_steps, task.seed)
        users = task.data.episodes("validation")
        best, _ = best_static_prompt(environment, drawn, users)
        options = zip(patterns.names, best.actions, strict=True)
        self.chosen = "; ".join(patterns.describe(*option) for option in options)
        return ranks_of(environment, best)

    def notes(self, ranks: Tensor) -> list[str]:
        """The option chosen, where only some patterns have a choice."""
        return [] if self.names is None else [f"{self.name}: chosen is {self.chosen!r}."]

    def max_calls(self, task: Task, n_users: int) -> int:
        """Every prompt for every validation user, one for every test user."""
        n_validation = len(task.data.episodes("validation"))
        return n_static_calls(self.n_prompts, n_validation) + n_users


class RandomPolicy(PromptMethod):
    """Uniform actions in every step: what other prompts are worth without learning."""

    name = "random policy"

    def learn(self, task: Task) -> Ranks:
        """There is nothing to learn."""
        environment = task.environment

        def ranks(episodes: Sequence[Episode]) -> Sequence[Ranking]:
            chosen = random_choices(task.patterns, episodes, task.n_steps, (task.seed,))
            return environment.step(episodes, *chosen).rankings

        return ranks

    def max_calls(self, task: Task, n_users: int) -> int:
        """One a user."""
        return n_users


def ranks_of(environment: Environment, prompt: StaticPrompt) -> Ranks:
    """Rankings by one prompt for everybody."""
    return lambda episodes: environment.step_static(episodes, [prompt]).rankings
