"""Methods that learn nothing of a user: the manual prompt, enumeration, a random policy."""

from __future__ import annotations

from collections.abc import Sequence

from rpp.agents.actor_critic import random_choices
from rpp.comparison.base import PromptMethod, Ranks, Task
from rpp.metrics import ndcg, target_ranks
from rpp.prompts.static import StaticPrompt, draw_static_prompts
from rpp.types import Episode, InputError, Ranking


class Manual(PromptMethod):
    """The prompt one would write by hand: section ``manual`` of the patterns file."""

    name = "manual prompt"

    def learn(self, task: Task) -> Ranks:
        """There is nothing to learn.

        Raises:
            InputError: If the patterns file has no manual prompt.
        """
        patterns = task.patterns.learning([])
        length = patterns.history.lengths[0]

        def ranks(episodes: Sequence[Episode]) -> list[Ranking]:
            n = len(episodes)
            return task.ask(episodes, [patterns] * n, [()] * n, [length] * n)

        return ranks

    def n_calls(self, task: Task, n_users: int) -> int:
        """One a user."""
        return n_users


class Enumeration(PromptMethod):
    """The best of some static prompts by NDCG on the validation users (paper, section 4.1).

    Args:
        n_prompts: Prompts drawn from the product of all patterns' options.
    """

    def __init__(self, n_prompts: int = 8) -> None:
        if n_prompts < 1:
            raise InputError(f"enumeration of {n_prompts} prompts: draw at least 1")
        self.n_prompts = n_prompts
        self.name = f"best of {n_prompts} static"

    def learn(self, task: Task) -> Ranks:
        """Ask every prompt for every validation user, all at once, so that they share work."""
        drawn = draw_static_prompts(task.patterns, self.n_prompts, task.n_steps, task.seed)
        users = task.data.episodes("validation")
        episodes = [episode for episode in users for _ in drawn]
        ranks = target_ranks(_ask(task, episodes, drawn * len(users)), episodes)
        # no answer counts 0: left out, it would let a prompt win by the few users it got one for
        scores = ndcg(ranks, len(users[0].candidates)).nan_to_num(0)
        best = drawn[int(scores.reshape(len(users), len(drawn)).mean(0).argmax())]
        return lambda asked: _ask(task, asked, [best] * len(asked))

    def n_calls(self, task: Task, n_users: int) -> int:
        """Every prompt for every validation user, one for every test user."""
        return self.n_prompts * len(task.data.episodes("validation")) + n_users


def _ask(task: Task, episodes: Sequence[Episode], prompts: Sequence[StaticPrompt]) -> list[Ranking]:
    return task.ask(
        episodes,
        [task.patterns] * len(episodes),
        [prompt.actions for prompt in prompts],
        [prompt.length for prompt in prompts],
    )


class RandomPolicy(PromptMethod):
    """Actions drawn uniformly in every step: what other words are worth without learning."""

    name = "random policy"

    def learn(self, task: Task) -> Ranks:
        """There is nothing to learn."""
        patterns = task.patterns

        def ranks(episodes: Sequence[Episode]) -> list[Ranking]:
            actions, lengths = random_choices(patterns, episodes, task.n_steps, (task.seed,))
            return task.ask(episodes, [patterns] * len(episodes), actions.tolist(), lengths)

        return ranks

    def n_calls(self, task: Task, n_users: int) -> int:
        """One a user."""
        return n_users
