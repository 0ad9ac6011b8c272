"""Control language models without skill.

Every method based on them must score chance; otherwise the pipeline leaks the target. The overlays
in ``conf/controls`` replace the real model by one of them.
"""

from __future__ import annotations

import hashlib
import re
from typing import Literal

import numpy as np

from rpp.llms.base import ScriptedLanguageModel


def shown_candidates(prompt: str) -> list[str]:
    """Titles of the candidates in the order a prompt lists them."""
    return re.findall(r"^[A-Z]{1,2}\. (.+)$", prompt, flags=re.MULTILINE)


def copies_the_list(prompt: str) -> str:
    """The list as it was shown, numbered."""
    return "\n".join(f"{k}. {title}" for k, title in enumerate(shown_candidates(prompt), start=1))


def echoes_on_one_line(prompt: str) -> str:
    """The list as it was shown, on one line."""
    return "Sure! " + ", ".join(shown_candidates(prompt)) + "."


def names_one_position(prompt: str) -> str:
    """Only the candidate in the middle."""
    titles = shown_candidates(prompt)
    return f"1. {titles[len(titles) // 2]}" if titles else ""


def answers_at_random(prompt: str) -> str:
    """All candidates in an order drawn from the prompt's own hash."""
    titles = shown_candidates(prompt)
    seed = int(hashlib.sha256(prompt.encode()).hexdigest()[:8], 16)
    return "\n".join(titles[k] for k in np.random.default_rng(seed).permutation(len(titles)))


def says_nothing(prompt: str) -> str:
    """A reply that names no candidate."""
    return "I cannot help with that."


def scores_all_alike(prompt: str, text: str) -> float:
    """The same score for every candidate."""
    return -1.0


def scores_at_random(prompt: str, text: str) -> float:
    """A random number seeded by prompt and text."""
    return -int(hashlib.sha256(f"{prompt}{text}".encode()).hexdigest()[:8], 16) / 2**32


Behaviour = Literal[
    "copies_the_list",
    "echoes_on_one_line",
    "names_one_position",
    "answers_at_random",
    "says_nothing",
]

SKILL_LESS = (
    copies_the_list,
    echoes_on_one_line,
    names_one_position,
    answers_at_random,
    says_nothing,
)


class ControlLanguageModel(ScriptedLanguageModel):
    """A language model without any skill.

    Args:
        behaviour: What it does instead of ranking.
    """

    def __init__(self, behaviour: Behaviour) -> None:
        by_name = {reply.__name__: reply for reply in SKILL_LESS}
        super().__init__(reply=by_name[behaviour], name=behaviour)
