"""What the tests of GRIPS share: a model that knows which instruction is good for whom."""

from __future__ import annotations

import re

import pytest
from pipeline import PATTERNS, MadeUpUsers, shown_history

from rpp.comparison.base import Task
from rpp.llms.base import ScriptedLanguageModel
from rpp.llms.controls import shown_candidates
from rpp.metrics import METRICS, target_ranks
from rpp.prompts.patterns import load_patterns
from rpp.ranker import Ranker
from rpp.types import final_scoring

SENTENCES = load_patterns(PATTERNS)
MANUAL = SENTENCES.learning([])
PLACEHOLDER = "{n_candidates}"


def task(reply, users=None, refiner=None, **options):
    users = users or MadeUpUsers(n_train=1, n_validation=20, n_test=30)
    llm = ScriptedLanguageModel(reply=reply)
    return Task(users, SENTENCES, Ranker(llm, seed=3), n_steps=3, refiner=refiner, **options)


def ndcg_of(rankings, episodes, name="ndcg@10"):
    with final_scoring():
        return METRICS[name](target_ranks(rankings, episodes))


def asks_for_words(prompt):
    """The phrase a prompt wants reworded, if it is such a prompt."""
    found = re.search(r"^Instruction: (.*)$", prompt, re.MULTILINE)
    return found and found[1]


def planted(users, is_good):
    """The target first where a prompt is good for its user, otherwise last.

    Whoever has seen A, then B turns to C next: that is how it knows users and all their targets.
    """
    after = {}
    with final_scoring():
        for split_name in ("validation", "test"):
            for e in users.episodes(split_name):
                titles = [item.title for item in (*e.history, e.candidates[e.target])]
                for k in range(2, len(titles)):
                    after.setdefault((titles[k - 2], titles[k - 1]), (e.user, titles[k]))

    def reply(prompt):
        if asks_for_words(prompt):
            return ""
        user, target = after[tuple(shown_history(prompt)[-2:])]
        others = [title for title in shown_candidates(prompt) if title != target]
        return "\n".join([target, *others] if is_good(user, prompt) else [*others, target])

    return reply


@pytest.fixture(scope="module")
def users():
    return MadeUpUsers(n_train=1, n_validation=20, n_test=30, seed=1)
