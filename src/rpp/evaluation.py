"""What a learner is compared with: random prompts, the best static prompt, permuted prompts.

A learner's own test and the comparison of methods both use what is here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor

from rpp.processes import gather, gather_rows
from rpp.prompts.patterns import Patterns
from rpp.prompts.static import StaticPrompt
from rpp.results.users import AskedUser
from rpp.rollout import Environment, Step, uniforms
from rpp.types import Episode, Ranking, final_scoring

RANDOM_POLICY = "random policy"
BEST_STATIC = "best static prompt"

PERMUTED = ", prompts permuted"
"""Stands behind the name of a policy in the row of its permuted prompts."""

PERMUTED_NOTE = (
    "each test user is asked once more with the last prompt of another, drawn once. The share of"
    " users at every option stays the same. A gain over this row beyond chance is personal."
)

_RANDOM, _PERMUTATION = 1_000_002, 1_000_003
"""Parts of a generator's key: no draw of one purpose tells anything of another's."""


def random_actions(n_actions: Sequence[int], draws: Tensor) -> Tensor:
    """Uniform actions ``(B, P)`` from numbers in [0, 1) of that shape."""
    return (draws * torch.tensor(n_actions, device=draws.device)).long()


def random_choices(
    patterns: Patterns, episodes: Sequence[Episode], n_steps: int, key: Sequence[int]
) -> tuple[Tensor, list[int]]:
    """Last choices of a uniform policy, which needs no answer to the steps before.

    Args:
        patterns: The options.
        episodes: ``B`` users.
        n_steps: Steps of an episode, at least one.
        key: What tells these draws from others; the step follows it.

    Returns:
        Actions of the last step, ``(B, P)``, and the history length each user has reached.
    """
    lengths = patterns.first_lengths(len(episodes))
    for step in range(n_steps):
        draws = uniforms((*key, step), episodes, len(patterns.names))
        actions = random_actions(patterns.n_actions, draws)
        lengths = patterns.next_lengths(actions.tolist(), lengths)
    return actions, lengths


def step_random(
    environment: Environment, episodes: Sequence[Episode], n_steps: int, seed: int
) -> Step:
    """The last step of a uniform policy: what other prompts are worth without learning.

    Args:
        environment: Options and ranker.
        episodes: ``B`` users.
        n_steps: Steps of an episode.
        seed: Of the draws.
    """
    choices = random_choices(environment.patterns, episodes, n_steps, (seed, _RANDOM))
    return environment.step(episodes, *choices)


def n_static_calls(n_prompts: int, n_users: int) -> int:
    """Prompts that :func:`best_static_prompt` needs: a single one leaves nothing to choose."""
    return n_prompts * n_users if n_prompts > 1 else 0


def best_static_prompt(
    environment: Environment, drawn: Sequence[StaticPrompt], episodes: Sequence[Episode]
) -> tuple[StaticPrompt, float | None]:
    """The static prompt with the highest mean NDCG on validation users (paper, section 4.1).

    All prompts are asked at once, so that those of one user share work. A prompt without an
    answer counts 0: left out, it could win by the few users it was answered for.

    Args:
        environment: Options and ranker.
        drawn: What to choose from.
        episodes: This process's validation users.

    Returns:
        The prompt and its mean NDCG; no mean where there was no choice.
    """
    if not n_static_calls(len(drawn), len(episodes)):
        return drawn[0], None
    rewards = environment.step_static(episodes, drawn).rewards().reshape(-1, len(drawn))
    scores = gather_rows(rewards).nan_to_num(0).mean(0)
    best = int(scores.argmax())
    return drawn[best], float(scores[best])


def step_permuted(environment: Environment, played: Sequence[Step], seed: int) -> list[Step]:
    """Ask once more with the prompts permuted across users; marginals unchanged.

    Args:
        environment: Options and ranker.
        played: Steps of this process in which every user stands once, with a single episode.
        seed: Of the permutation, a cycle through the users of all processes.

    Returns:
        A step for each, of the same users; none if there is only one user.
    """
    own = [
        (episode.user, actions, length)
        for step in played
        for episode, actions, length in zip(
            step.episodes, step.actions.tolist(), step.lengths, strict=True
        )
    ]
    chosen = {user: rest for part in gather(own) for user, *rest in part}
    if len(chosen) < 2:
        return []
    rng = np.random.default_rng([seed, _PERMUTATION])
    cycle = rng.permutation(sorted(chosen)).tolist()
    giver = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
    steps = []
    for step in played:
        given = [chosen[giver[episode.user]] for episode in step.episodes]
        actions, lengths = zip(*given, strict=True)
        steps.append(environment.step(step.episodes, torch.tensor(actions), list(lengths)))
    return steps


def n_differing(own: Sequence[Step], others: Sequence[Step]) -> int:
    """Number of users whose prompt in the second steps differs from that in the first.

    Args:
        own: Steps.
        others: As many, with the same users in the same order.
    """
    return sum(
        prompt.text != other.text
        for step, another in zip(own, others, strict=True)
        for prompt, other in zip(step.prompts, another.prompts, strict=True)
    )


def asked_users(
    last: Step,
    rankings: Sequence[Ranking],
    prompts: Sequence[str],
    probabilities: Sequence[Mapping[str, Sequence[float]]],
) -> list[AskedUser]:
    """What a policy's last step has asked, beside the answers to other prompts.

    Args:
        last: The policy's step.
        rankings: Answers to the other prompts, of the same users.
        prompts: Their texts.
        probabilities: Of every option by pattern, of every user; empty where there are none.
    """
    return [
        AskedUser(
            episode.user, actions, prompt.n_history, prompt.sentences, prompt.text, ranking.order,
            probs, other, answer.order,
        )
        for episode, actions, prompt, ranking, probs, other, answer in zip(
            last.episodes, last.actions.tolist(), last.prompts, last.rankings, probabilities,
            prompts, rankings, strict=True,
        )
    ]  # fmt: skip


@dataclass
class TestResults:
    """What a learner's test has measured, over the users of all processes.

    Attributes:
        ranks: Rank of every user's target by row of the table, ``(n_users,)``.
        ranks_by_step: The same after every step of the learner.
        named_ranks: The same after its last step, a target the reply did not name as not retrieved.
        positions: Position from 1 at which the target was displayed, ``(n_users,)``.
        replies: How the learner's last replies were read, by status.
        last_steps: The learner's last steps, of this process alone.
        users: What every user was asked, by the learner and by the best static prompt.
        n_permuted: Users whose permuted prompt differs from their own.
    """

    __test__ = False  # no test case, whatever its name says

    ranks: dict[str, Tensor] = field(default_factory=dict)
    ranks_by_step: list[Tensor] = field(default_factory=list)
    named_ranks: Tensor = field(default_factory=lambda: torch.empty(0))
    positions: Tensor = field(default_factory=lambda: torch.empty(0))
    replies: Counter[str] = field(default_factory=Counter)
    last_steps: list[Step] = field(default_factory=list)
    users: list[AskedUser] = field(default_factory=list)
    n_permuted: int = 0

    @property
    def n_users(self) -> int:
        """Users tested so far."""
        return len(self.positions)

    def add(
        self,
        rows: Mapping[str, Step],
        steps: Sequence[Step],
        probabilities: Sequence[Mapping[str, Sequence[float]]],
    ) -> None:
        """Score a batch: the only place, with :meth:`add_row`, that reads its targets.

        Args:
            rows: A step by row of the table.
            steps: All steps of the learner.
            probabilities: Of every option in the last of them, by pattern, of every user.
        """
        last = steps[-1]
        self.last_steps.append(last)
        for name, step in rows.items():
            self.add_row(name, step)
        with final_scoring():
            by_step = [gather_rows(step.target_ranks()) for step in steps]
            named = gather_rows(last.target_ranks(named_only=True))
            shown = torch.tensor([float(e.target + 1) for e in last.episodes])
        before = self.ranks_by_step or [torch.empty(0)] * len(by_step)
        self.ranks_by_step = [torch.cat(pair) for pair in zip(before, by_step, strict=True)]
        self.named_ranks = torch.cat([self.named_ranks, named])
        self.positions = torch.cat([self.positions, gather_rows(shown)])
        for replies in gather(Counter(ranking.status for ranking in last.rankings)):
            self.replies.update(replies)
        static = rows[BEST_STATIC]
        prompts = [prompt.text for prompt in static.prompts]
        asked = asked_users(last, static.rankings, prompts, probabilities)
        for part in gather([asdict(each) for each in asked]):
            self.users += [AskedUser(**each) for each in part]

    def add_row(self, name: str, step: Step) -> None:
        """Score one row of a batch."""
        with final_scoring():
            own = gather_rows(step.target_ranks())
        before = self.ranks.get(name)
        self.ranks[name] = own if before is None else torch.cat([before, own])
