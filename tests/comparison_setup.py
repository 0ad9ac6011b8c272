"""What the tests of the comparison share: users, a model that knows their targets, policies."""

from __future__ import annotations

import pytest
from pipeline import MadeUpUsers, environment, module, trainer

from rpp.comparison.base import Task
from rpp.comparison.comparison import Comparison
from rpp.comparison.policy import Policy
from rpp.comparison.report import ComparisonReport
from rpp.llms.base import ScriptedLanguageModel
from rpp.llms.controls import copies_the_list, shown_candidates
from rpp.metrics import METRICS, target_ranks
from rpp.prompts.patterns import load_patterns
from rpp.ranker import Ranker
from rpp.types import final_scoring

PATTERNS = load_patterns("conf/patterns/movies.yaml")
GOOD = PATTERNS.reasoning[3].replace("{n_candidates}", "10")


@pytest.fixture
def users(tmp_path):
    made = MadeUpUsers(n_train=20, n_validation=20, n_test=60, batch_size=20)
    made.folder = tmp_path / "made-up"
    return made


def knows(users, when=""):
    """A model that names the target first where the prompt holds a text; copies the list else."""
    with final_scoring():
        target = {
            frozenset(item.title for item in e.candidates): e.candidates[e.target].title
            for split in ("train", "validation", "test")
            for e in users.episodes(split)
        }

    def reply(prompt):
        if when not in prompt:
            return copies_the_list(prompt)
        return "1. " + target[frozenset(shown_candidates(prompt))]

    return reply


def task(users, reply=copies_the_list, **options):
    ranker = Ranker(ScriptedLanguageModel(reply=reply), "generate")
    return Task(users, PATTERNS, ranker, n_steps=2, **options)


def scored(rankings, episodes):
    with final_scoring():
        return METRICS["ndcg@10"](target_ranks(rankings, episodes)).mean().item()


def compare(users, tmp_path, methods, reply=copies_the_list, recommenders=(), **options):
    """Run a comparison of made-up users; the module after its test."""
    made = Comparison(
        methods=methods, recommenders=list(recommenders), reference=methods[0].name, n_steps=2
    )
    report = ComparisonReport(str(tmp_path / "results"))
    trainer(tmp_path, environment(reply, **options), report).test(made, users, verbose=False)
    return made


def learner(**options):
    return module(n_steps=2, n_static_prompts=1, actor_lr=0.01, critic_lr=0.01, **options)


def policy(users, name="RPP", max_epochs=2, refined=False, **options):
    logs = str(users.folder / "logs")
    return Policy(name, learner(**options), max_epochs, 10, refined, log_dir=logs)
