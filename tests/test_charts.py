"""Charts are drawn from what a run really wrote."""

import sys

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from pipeline import MadeUpUsers, environment, module, trainer

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
    picture = tmp_path / "picture.png"
    monkeypatch.setattr(sys, "argv", ["charts", str(tmp_path / "run/version_0"), str(picture)])
    charts.main()
    assert picture.stat().st_size > 10_000
    run.test(model, users, verbose=False)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(InputError, match="no TensorBoard files of a training run"):
        charts.training(tmp_path)
