"""The sum of the language model's scores and recommenders', with weights."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from comparison_setup import PATTERNS, scored
from evidence_setup import AllAlike, AtRandom, IsTheTarget

from rpp.comparison.base import Task
from rpp.comparison.mixture import Mixture, answer_scores, softmax_weights
from rpp.comparison.references import Manual
from rpp.data.datamodule import EpisodeDataModule
from rpp.llms.base import ScriptedLanguageModel
from rpp.llms.controls import copies_the_list
from rpp.prompts.compose import Display, compose
from rpp.ranker import Ranker
from rpp.types import (
    InputError,
    LanguageModelError,
    Ranking,
    TargetAccessError,
    final_scoring,
)


@pytest.fixture
def data(prepared_folder, custom_csv, tmp_path):
    shutil.copytree(prepared_folder, tmp_path / "custom")
    made = EpisodeDataModule(
        "custom", str(tmp_path), n_train_users=40, n_validation_users=20, n_test_users=20,
        custom=custom_csv.files,
    )  # fmt: skip
    made.prepare_data()
    made.setup("fit")
    return made


def task(data, **options):
    ranker = Ranker(ScriptedLanguageModel(**options), options.pop("decoding", "generate"))
    return Task(data, PATTERNS, ranker, n_steps=2)


def titles(data):
    """Titles of the targets, by the users' candidates."""
    with final_scoring():
        return {
            e.candidates[e.target].title for s in ("validation", "test") for e in data.episodes(s)
        }


def test_the_weights_follow_who_is_right(data):
    """A model that knows most targets outweighs a recommender that knows nothing."""
    known = titles(data)

    def reply(prompt):
        named = [line[3:] for line in prompt.split("\n") if line[1:3] == ". " and line[0] > "9"]
        return "\n".join(sorted(named, key=lambda title: title not in known))

    mixed = Mixture([AtRandom(), AllAlike()])
    mine = task(data, reply=reply)
    ranks = mixed.learn(mine)
    own, random, alike = mixed.weights.tolist()
    assert own > 5 * abs(random)
    assert alike == 0
    test = data.episodes("test")
    assert scored(ranks(test), test) >= scored(Manual().learn(mine)(test), test) - 0.02
    assert mine.ranker.counters.calls <= mixed.max_calls(mine, len(test))
    (note,) = mixed.notes(torch.ones(1))
    assert "language model " in note
    assert "at random " in note


def test_a_recommender_that_looks_at_test_targets_is_stopped(data):
    ranks = Mixture([IsTheTarget()]).learn(task(data, reply=copies_the_list))
    with pytest.raises(TargetAccessError):
        ranks(data.episodes("test"))


def test_a_failed_call_stays_failed(data):
    test = data.episodes("test")
    lost = test[0].candidates[0].title

    def reply(prompt):
        shown = f"A. {lost}\n" in prompt
        return LanguageModelError("lost") if shown else copies_the_list(prompt)

    rankings = Mixture([AtRandom()]).learn(task(data, reply=reply))(test)
    assert rankings[0].failed
    assert sum(ranking.failed for ranking in rankings) < len(rankings)


def test_scores_by_hand(tiny_episodes):
    """The decoding's scores if there are some; else ranks, one for all that were not named."""
    (episode, *_) = tiny_episodes
    order = (3, 1, 2, 0, *range(4, 10))
    scores = tuple(float(k) for k in range(10))
    assert answer_scores(Ranking(order, 10, "valid", scores=scores), episode) == list(scores)
    assert answer_scores(Ranking(order, 2, "repaired"), episode) == [
        -2, -1, -2, 0, -2, -2, -2, -2, -2, -2,
    ]  # fmt: skip
    assert answer_scores(Ranking((), 0, "failed"), episode) == [0.0] * 10


def test_a_decoding_with_scores_tells_them(tiny_episodes):
    display = Display(show_candidates=False)
    ranker = Ranker(
        ScriptedLanguageModel(scorer=lambda prompt, text: -float(len(text))), "likelihood",
        show_candidates=False, per_character=False,
    )  # fmt: skip
    prompts = compose(tiny_episodes[:2], PATTERNS, [[0] * 4] * 2, [2, 2], display)
    for ranking, episode in zip(
        ranker.rank(prompts, tiny_episodes[:2]), tiny_episodes, strict=False
    ):
        assert ranking.scores == tuple(-float(len(f" {i.title}\n")) for i in episode.candidates)


def test_softmax_weights_by_hand():
    r"""One feature, two candidates, target better by 2 in three users of four, worse in one.

    .. math:: 0 = -\frac{2}{4} (3 \sigma(-2 w) - \sigma(2 w)) + 2 \lambda w
    """
    features = torch.tensor([[[1.0], [-1.0]]] * 4, dtype=torch.double)
    targets = torch.tensor([0, 0, 0, 1])
    (w,) = softmax_weights(features, targets, ridge=1e-9).tolist()
    assert 2 * w == pytest.approx(math.log(3), abs=1e-3)
    (smaller,) = softmax_weights(features, targets, ridge=0.1).tolist()
    sigma = 1 / (1 + math.exp(-2 * smaller))
    assert 0.5 * (3 * (1 - sigma) - sigma) == pytest.approx(0.2 * smaller, abs=1e-4)


def test_nonsense_is_refused():
    with pytest.raises(InputError, match="has no recommenders"):
        Mixture([])
    with pytest.raises(InputError, match="has the ridge 0"):
        Mixture([AtRandom()], ridge=0)
