"""Charts are drawn from what a run really wrote."""

import sys

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from patterns_setup import MINIMAL, load
from pipeline import MadeUpUsers, environment, module, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rpp import charts
from rpp.callbacks.prompt_log import PromptLog
from rpp.llms.controls import answers_at_random
from rpp.types import InputError


def test_a_run_is_drawn_from_its_tensorboard_files(tmp_path, monkeypatch):
    logger = TensorBoardLogger(tmp_path, name="run", default_hp_metric=False)
    users = MadeUpUsers(n_train=10, n_validation=5, n_test=5)
    model = module(n_steps=2, n_static_prompts=2)
    run = trainer(
        tmp_path,
        environment(answers_at_random),
        PromptLog(),
        max_epochs=2,
        logger=logger,
        log_every_n_steps=1,
    )
    run.fit(model, users)
    by_epoch, by_step, entropy = charts.training(tmp_path / "run/version_0").axes
    training, validation, _static, chance = by_epoch.lines
    assert len(training.get_ydata()) == 2
    assert len(validation.get_ydata()) == 2
    assert chance.get_ydata()[0] == pytest.approx(0.454, abs=5e-4)
    assert len(by_step.lines[0].get_ydata()) == 2
    assert len(entropy.lines) == 4
    tags = EventAccumulator(str(tmp_path / "run/version_0")).Reload().Tags()["scalars"]
    for group, n in (("train_reward_by_step", 2), ("val_ndcg_by_step", 2), ("actions_role", 3)):
        numbers = sorted(int(t.split("/")[1]) for t in tags if t.startswith(f"{group}/"))
        assert numbers == list(range(1, n + 1)), group  # from 1, as in patterns and charts
    picture = tmp_path / "picture.png"
    monkeypatch.setattr(sys, "argv", ["charts", str(tmp_path / "run/version_0"), str(picture)])
    charts.main()
    assert picture.stat().st_size > 10_000
    run.test(model, users, verbose=False)


def test_bars_name_their_sentences(tmp_path):
    """Labels once said "reasoning 2", which nobody can look up."""
    long = "Think of what the user has seen most often, then of what is new to them."
    patterns = load(tmp_path, MINIMAL.replace("Rank all {n_candidates}.", long))
    figure = charts.user_distribution(torch.tensor([[1, 0, 1, 0]]), [4], patterns)
    ticks = [tick for axis in figure.axes for tick in axis.get_yticklabels()]
    labels = [" ".join(tick.get_text().split()) for tick in ticks]
    assert {"no role", "4 items", "Write titles."} <= set(labels)
    assert "Think of what the user has seen most often, then of what …" in labels


def test_bars_are_the_shares_of_the_users(tmp_path):
    patterns = load(tmp_path, MINIMAL)
    actions = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]])
    figure = charts.user_distribution(actions, [2, 2, 4, 4], patterns)
    told = [[text.get_text() for text in axis.texts] for axis in figure.axes]
    assert told[:2] == [["25 %", "75 %"], ["50 %", "50 %"]]
    assert [bar.get_width() for bar in figure.axes[0].patches] == [25, 75]


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(InputError, match="no TensorBoard files of a training run"):
        charts.training(tmp_path)
