"""Guards of the comparison: rankers without skill score chance, no test target is read early."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from comparison_setup import compare, task
from comparison_setup import users as users
from pipeline import MadeUpUsers

from rpp.baselines.base import Recommender
from rpp.comparison.base import PromptMethod
from rpp.comparison.chance import control_ranks, suspicious
from rpp.comparison.references import Manual
from rpp.llms.base import ScriptedLanguageModel
from rpp.llms.controls import copies_the_list
from rpp.ranker import Ranker
from rpp.types import InputError, Ranking, TargetAccessError


def test_controls_score_chance(users):
    test = users.episodes("test")
    ranks = control_ranks(task(users), test)
    assert len(ranks) == 6
    assert suspicious(ranks, 10) == []


def test_controls_go_through_the_decoding_of_the_comparison(users, monkeypatch):
    """A leak where scores are read leaves those alone whose replies are read."""
    llm = ScriptedLanguageModel(scorer=lambda *_: -1.0)
    mine = replace(task(users), ranker=Ranker(llm, "likelihood", show_candidates=False))
    test = users.episodes("test")
    ranks = control_ranks(mine, test)
    assert ranks.keys() >= {"scores_all_alike", "scores_at_random"}
    assert len(ranks) == 8
    assert suspicious(ranks, 10) == []

    def leaks(self, scores, episode):
        order = sorted(range(len(scores)), key=lambda k: k != episode.withheld)
        return Ranking(tuple(order), len(order), "valid")

    monkeypatch.setattr(Ranker, "_from_scores", leaks)
    assert {sentence.split()[0] for sentence in suspicious(control_ranks(mine, test), 10)} == {
        "scores_all_alike", "scores_at_random",
    }  # fmt: skip


class OnePosition(MadeUpUsers):
    """The fault of the authors' code: every target at one place of the list."""

    def __init__(self, position: int) -> None:
        super().__init__(n_train=5, n_validation=5, n_test=60, batch_size=20)
        self._episodes["test"] = [
            replace(episode, withheld=position) for episode in self.episodes("test")
        ]


@pytest.mark.parametrize("position", [0, 5, 9])
def test_no_table_where_a_control_has_skill(tmp_path, position, capsys):
    asked = []

    def reply(prompt):
        asked.append(prompt)
        return copies_the_list(prompt)

    users = OnePosition(position)
    with pytest.raises(InputError, match="there is no table, because a ranker without skill has"):
        compare(users, tmp_path, [Manual()], reply)
    assert not (tmp_path / "results").exists()
    assert len(asked) <= 8  # the budget's; the methods have not begun


class Peeks(PromptMethod):
    """A planted violation: it looks at a test target while it learns, or while it ranks."""

    name = "peeks"

    def __init__(self, early: bool) -> None:
        self.early = early

    def learn(self, task):
        if self.early:
            assert task.data.episodes("test")[0].target >= 0
        return lambda episodes: [Manual().learn(task)(episodes)[k] for k in (episodes[0].target,)]

    def max_calls(self, task, n_users):
        return n_users


class PeeksToo(Recommender):
    """The same among the recommenders."""

    name = "peeks too"

    def fit(self, folder):
        self._scorer = lambda episodes: torch.tensor(
            [[float(k == e.target) for k in range(10)] for e in episodes]
        )

    def learn(self, data):
        raise NotImplementedError


@pytest.mark.parametrize("method", [Peeks(True), Peeks(False)])
def test_a_method_that_looks_at_a_test_target_ends_the_comparison(users, tmp_path, method):
    with pytest.raises(TargetAccessError, match="test users may not influence any choice"):
        compare(users, tmp_path, [Manual(), method])
    assert not (tmp_path / "results").exists()


def test_a_recommender_that_looks_at_a_test_target_ends_the_comparison(users, tmp_path):
    with pytest.raises(TargetAccessError, match="test users may not influence any choice"):
        compare(users, tmp_path, [Manual()], recommenders=[PeeksToo()])
