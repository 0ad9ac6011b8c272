"""The benchmark of the learner on made-up users: every part counted, each second once."""

from __future__ import annotations

import time

import pytest
from pipeline import HashEncoder, MadeUpUsers, module

from benchmarks.training import LLM, PARTS, REST, language_model_seconds, learn, table
from rpp.llms.base import ScriptedLanguageModel


class SlowEncoder(HashEncoder):
    """Takes a twentieth of a second longer."""

    def __call__(self, texts):
        time.sleep(0.05)
        return super().__call__(texts)


@pytest.fixture(scope="module")
def users():
    return MadeUpUsers(n_train=12, n_validation=1, n_test=1, batch_size=6)


@pytest.mark.parametrize(
    ("decoding", "show_candidates"), [("generate", True), ("likelihood", False)]
)
def test_every_part_is_counted_and_no_second_twice(users, decoding, show_candidates):
    model = module(n_steps=3, n_static_prompts=1)
    model.encoder = SlowEncoder()
    started = time.perf_counter()
    watch = learn(model, users, decoding, show_candidates=show_candidates)
    took = time.perf_counter() - started
    assert set(watch.seconds) == {*PARTS, REST}
    assert all(seconds > 0 for seconds in watch.seconds.values())
    assert sum(watch.seconds.values()) < took
    # two batches, and two encodings each: none is needed after the last step
    assert 0.2 <= watch.seconds["prompt encoder"] < took
    assert watch.seconds["state and agents"] < 0.2
    assert watch.cpu["prompt encoder"] < watch.seconds["prompt encoder"]  # it slept
    assert len(model.train_steps) == 6
    assert all(ranking.status == "valid" for ranking in model.train_steps[0].rankings)

    lines = table({decoding: watch}, n_steps=3)
    figures = {line.split("|")[1].strip(): line.split("|")[2:4] for line in lines[2:]}
    assert set(figures) == {*PARTS, REST, "**the learner**"} - {LLM}
    for column in range(2):
        *parts, learner = (float(cells[column]) for cells in figures.values())
        assert sum(parts) == pytest.approx(learner, abs=0.005)
    assert float(figures["prompt encoder"][0]) >= 0.2 / 3


def test_the_language_models_seconds_are_per_user(users):
    def scorer(prompt, title):
        time.sleep(0.001)
        return 0.0

    model = module(n_steps=2, n_static_prompts=1)
    learn(model, users, "likelihood", show_candidates=False)
    each = language_model_seconds(ScriptedLanguageModel(scorer=scorer), model.train_steps[0], 4)
    assert each >= 0.01  # ten titles
