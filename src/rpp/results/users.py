"""Test users one by one: what each was asked and why, and what came back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rpp.metrics import METRICS
from rpp.prompts.patterns import Patterns
from rpp.results.shares import WIDTH
from rpp.types import Episode, final_scoring

N_EXAMPLES = 10
"""Users in a report."""

N_TITLES = 10
"""Titles of their history."""


@dataclass(frozen=True)
class AskedUser:
    """What a test user was asked and answered; plain values, which processes can exchange.

    Attributes:
        user: Row of the user.
        actions: Of the policy's last prompt, ``P``.
        n_history: Interactions it shows.
        sentences: Its sentence of every pattern, in the order of ``Patterns.parts``.
        prompt: Its text.
        order: Positions of the candidates, best first; empty if the language model failed.
        probabilities: Of every option by pattern; empty if the policy has none.
        other_prompt: Text of the prompt it is compared with; empty if it is not known.
        other_order: The answer to that one.
    """

    user: int
    actions: Sequence[int]
    n_history: int
    sentences: Sequence[str]
    prompt: str
    order: Sequence[int]
    probabilities: Mapping[str, Sequence[float]]
    other_prompt: str
    other_order: Sequence[int]


@dataclass(frozen=True)
class Chosen:
    """The option of a pattern that a user was asked with, among all.

    Attributes:
        pattern: Its name.
        number: Of the option, from 1.
        sentence: What the prompt says; for the history, how many items it shows.
        options: All options in words.
        probabilities: Of each of them; empty if the policy has none.
    """

    pattern: str
    number: int
    sentence: str
    options: Sequence[str]
    probabilities: Sequence[float]


@dataclass(frozen=True)
class Answer:
    """A prompt and the ranking that came back.

    Attributes:
        prompt: Text of the prompt; empty if it is not known.
        titles: The candidates, best first.
        rank: That of the target, from 1.
    """

    prompt: str
    titles: Sequence[str]
    rank: int


@dataclass(frozen=True)
class Example:
    """One test user of a report.

    Attributes:
        name: The user's in the raw data.
        history: The last titles of the history, the latest last.
        n_history: Length of the whole history.
        chosen: What the policy chose.
        own: The answer to its prompt.
        other: The answer to the prompt it is compared with.
        gain: NDCG@10 of the former less that of the latter.
    """

    name: str
    history: Sequence[str]
    n_history: int
    chosen: Sequence[Chosen]
    own: Answer
    other: Answer
    gain: float


@dataclass(frozen=True)
class Examples:
    """Some test users.

    Attributes:
        choice: How they were chosen, in words.
        users: The users, the largest gain first.
    """

    choice: str = ""
    users: Sequence[Example] = ()


def examples(
    users: Sequence[AskedUser], episodes: Sequence[Episode], patterns: Patterns, seed: int
) -> Examples:
    """Ten users from the largest gain to the largest loss, evenly spaced in that order.

    Args:
        users: What they were asked; this is the final scoring.
        episodes: The test users.
        patterns: The options that the actions point into.
        seed: Of the order of users with equal gains.
    """
    of_user = {episode.user: episode for episode in episodes}
    answered = [each for each in users if each.order and each.other_order]
    if not answered:
        return Examples()
    with final_scoring():
        targets = [of_user[each.user].target for each in answered]
    own, other = (
        [order.index(target) + 1 for order, target in zip(orders, targets, strict=True)]
        for orders in ([each.order for each in answered], [each.other_order for each in answered])
    )
    ours, theirs = (METRICS["ndcg@10"](torch.tensor(ranks)) for ranks in (own, other))
    gains = (ours - theirs).tolist()
    places = evenly_spaced(gains, seed)
    chosen = [
        _example(answered[k], of_user[answered[k].user], patterns, (own[k], other[k]), gains[k])
        for k in places
    ]
    return Examples(_choice(gains, len(chosen)), chosen)


def evenly_spaced(gains: Sequence[float], seed: int) -> list[int]:
    """Places of ten gains, evenly spaced from the largest to the smallest.

    They are those that are not zero, unless there are fewer than ten of these.

    Args:
        gains: Gains and losses.
        seed: Of the order of equal ones.
    """
    shuffled = np.random.default_rng(seed).permutation(len(gains)).tolist()
    order = sorted(shuffled, key=lambda k: -gains[k])
    differing = [k for k in order if gains[k]]
    order = differing if len(differing) >= N_EXAMPLES else order
    n = min(N_EXAMPLES, len(order))
    return [order[k] for k in np.linspace(0, len(order) - 1, n).round().astype(int).tolist()]


def _choice(gains: Sequence[float], n: int) -> str:
    higher, lower = (sum(sign * gain > 0 for gain in gains) for sign in (1, -1))
    among = "those for whom it differs" if higher + lower >= N_EXAMPLES else "all of them"
    return (
        f"Of {len(gains)} test users with an answer to both prompts, NDCG@10 is higher with the"
        f" policy's own for {higher}, lower for {lower} and the same for"
        f" {len(gains) - higher - lower}. Shown are {n} of {among}, evenly spaced from the largest"
        " gain to the largest loss; equal ones are in an order drawn from the policy's seed."
    )


def _example(
    asked: AskedUser, episode: Episode, patterns: Patterns, ranks: tuple[int, int], gain: float
) -> Example:
    def answer(prompt: str, order: Sequence[int], rank: int) -> Answer:
        return Answer(prompt, [episode.candidates[k].title for k in order], rank)

    return Example(
        episode.user_id or str(episode.user),
        [item.title for item in episode.history[-N_TITLES:]],
        len(episode.history),
        _chosen(asked, patterns, len(episode.candidates)),
        answer(asked.prompt, asked.order, ranks[0]),
        answer(asked.other_prompt, asked.other_order, ranks[1]),
        gain,
    )


def _chosen(asked: AskedUser, patterns: Patterns, n_candidates: int) -> list[Chosen]:
    """What was chosen of the patterns with a choice."""
    said = dict(zip(patterns.parts, asked.sentences, strict=True))
    sizes = zip(patterns.names, patterns.n_actions, asked.actions, strict=True)
    return [
        Chosen(
            name,
            action + 1,
            said[name],
            [patterns.label(name, option, n_candidates, WIDTH) for option in range(n)],
            asked.probabilities.get(name, ()),
        )
        for name, n, action in sizes
    ]
