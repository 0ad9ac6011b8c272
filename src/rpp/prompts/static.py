"""Static prompts: the same sentences for every user, chosen on validation users."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rpp.prompts.patterns import Patterns


@dataclass(frozen=True)
class StaticPrompt:
    """One option of every pattern and a history length, the same for all users."""

    actions: tuple[int, ...]
    length: int


def draw_static_prompts(
    patterns: Patterns, n_prompts: int, n_steps: int, seed: int
) -> list[StaticPrompt]:
    """Different static prompts, uniform over sentences and over the reachable history lengths.

    Args:
        patterns: The options.
        n_prompts: Number of prompts; fewer if there are no more.
        n_steps: Steps of an episode, which limit the reachable history lengths.
        seed: Of the draw.
    """
    history = patterns.history
    shortest, longest = history.start, history.start + n_steps * max(history.increments, default=0)
    lengths = history.lengths or tuple(range(shortest, longest + 1))
    others = {
        name: n
        for name, n in zip(patterns.names, patterns.n_actions, strict=True)
        if name != "history"
    }
    shape = (*others.values(), len(lengths))
    total = int(np.prod(shape))
    chosen = np.random.default_rng(seed).permutation(total)[:n_prompts]
    prompts = []
    for number in chosen:
        *options, at = (int(k) for k in np.unravel_index(number, shape))
        actions = dict(zip(others, options, strict=True)) | {
            "history": at if history.lengths else 0
        }
        prompts.append(StaticPrompt(tuple(actions[name] for name in patterns.names), lengths[at]))
    return prompts


def only_prompt(patterns: Patterns) -> StaticPrompt:
    """The prompt of patterns with single options, such as the manual prompt."""
    return StaticPrompt((), patterns.history.lengths[0])
