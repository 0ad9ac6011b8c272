"""What a run may cost: said before it begins, bounded, and nothing lost where it ends."""

from __future__ import annotations

import csv
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from pipeline import MadeUpUsers, environment, module, trainer

from rpp.callbacks.environment import budget
from rpp.callbacks.results import ResultsTable
from rpp.ranker import Counters
from rpp.types import InputError, LanguageModelStop

N_STEPS = 2
N_STATIC = 3
USERS = {"n_train": 8, "n_validation": 4, "n_test": 6, "batch_size": 2}


def play(tmp_path, max_calls=None, *callbacks, epochs=2):
    env = environment("1. nothing", max_calls=max_calls)
    last = ModelCheckpoint(dirpath=tmp_path, filename="last", enable_version_counter=False)
    rpp = module(n_steps=N_STEPS, n_static_prompts=N_STATIC)
    run = trainer(tmp_path, env, last, *callbacks, max_epochs=epochs)
    return env, rpp, run


@pytest.fixture
def counters(monkeypatch):
    """The counters of every ranker that was taken down, the last one at the end."""
    kept = []
    from rpp.ranker import Ranker

    made = Ranker.__init__

    def remember(self, *args, **options):
        made(self, *args, **options)
        kept.append(self)

    monkeypatch.setattr(Ranker, "__init__", remember)
    return kept


def test_no_fit_and_no_test_makes_more_calls_than_announced(tmp_path, counters, capsys):
    """Two epochs of (8 + 4) users and 2 steps, 3 static prompts for 4 users: 60 calls at most."""
    _, rpp, run = play(tmp_path)
    users = MadeUpUsers(**USERS)
    run.fit(rpp, datamodule=users)
    assert "Budget: at most 60 calls, about " in capsys.readouterr().out
    spent = counters[-1].counters
    assert 0 < spent.calls <= 60
    assert spent.calls + spent.cache_hits >= 60
    run.test(rpp, datamodule=users, verbose=False)
    n_calls = 6 * (2 * int(rpp.inference_steps) + 3)
    assert f"Budget: at most {n_calls} calls, about " in capsys.readouterr().out
    assert 0 < counters[-1].counters.calls <= n_calls


def test_validation_every_other_epoch_is_announced_as_such(tmp_path, counters, capsys):
    """Three epochs of 8 users, one of 4 validation users, 2 steps; 3 static prompts for 4 users."""
    env = environment("1. nothing")
    rpp = module(n_steps=N_STEPS, n_static_prompts=N_STATIC)
    run = trainer(tmp_path, env, max_epochs=3, check_val_every_n_epoch=2)
    run.fit(rpp, datamodule=MadeUpUsers(**USERS))
    assert f"Budget: at most {3 * 8 * 2 + 4 * 2 + 3 * 4} calls, about " in capsys.readouterr().out
    spent = counters[-1].counters
    assert spent.calls + spent.cache_hits >= 68


@pytest.mark.filterwarnings("ignore:.*exists and is not empty:UserWarning")
def test_a_fit_that_a_budget_ends_goes_on_as_if_nothing_had_been(tmp_path, counters, capsys):
    """Amid the second epoch: what is resumed is the end of the first, with the same draws."""
    users = MadeUpUsers(**USERS)
    _, whole, run = play(tmp_path / "whole", epochs=2)
    run.fit(whole, datamodule=users)
    needed = counters[-1].counters.calls
    _, rpp, run = play(tmp_path, needed - 4)
    with pytest.raises(LanguageModelStop, match=rf"environment\.max_calls: {needed - 4} calls"):
        run.fit(rpp, datamodule=users)
    assert counters[-1].counters.calls == needed - 4
    said = capsys.readouterr().out
    assert f"Budget: at most {needed - 4} calls" in said
    assert "the same command with --ckpt_path last goes on from the last whole epoch" in said
    _, again, run = play(tmp_path)
    run.fit(again, datamodule=users, ckpt_path=tmp_path / "last.ckpt")
    assert run.current_epoch == 2
    assert "Budget: at most 24 calls" in capsys.readouterr().out  # of one epoch of (8 + 4) users
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


@pytest.mark.filterwarnings("ignore:.*exists and is not empty:UserWarning")
def test_a_budget_spent_before_anything_was_learnt_leaves_a_former_checkpoint_alone(
    tmp_path, capsys
):
    (tmp_path / "last.ckpt").write_bytes(b"former")
    _, rpp, run = play(tmp_path, 2)
    with pytest.raises(LanguageModelStop):
        run.fit(rpp, datamodule=MadeUpUsers(**USERS))
    assert (tmp_path / "last.ckpt").read_bytes() == b"former"
    assert "the same command goes on from the beginning" in capsys.readouterr().out


def test_max_calls_ends_a_test_with_the_table_so_far(tmp_path):
    """Every batch of 2 users makes up to 8 calls; 12 are enough for one batch, not for three."""
    _, rpp, run = play(tmp_path, None, epochs=1)
    users = MadeUpUsers(**USERS)
    run.fit(rpp, datamodule=users)
    folder = tmp_path / "results"
    _, _, run = play(tmp_path, 12, ResultsTable(str(folder)))
    with pytest.raises(LanguageModelStop):
        run.test(rpp, datamodule=users, verbose=False)
    assert 0 < len(rpp.test_results.ranks["RPP"]) < 6
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert {"RPP", "random policy", "chance"} <= {row["method"] for row in rows}


def test_a_budget_that_ends_while_prompts_are_permuted_costs_that_row_alone(tmp_path, counters):
    users = MadeUpUsers(**USERS)
    _, rpp, run = play(tmp_path, epochs=1)
    run.fit(rpp, datamodule=users)
    run.test(rpp, datamodule=users, verbose=False)
    whole = dict(rpp.test_results.ranks)
    assert rpp.test_results.n_permuted > 0
    _, _, run = play(tmp_path, counters[-1].counters.calls - 1, ResultsTable(str(tmp_path / "r")))
    with pytest.raises(LanguageModelStop):
        run.test(rpp, datamodule=users, verbose=False)
    rows = list(csv.DictReader((tmp_path / "r/results.csv").read_text().splitlines()))
    assert [row["method"] for row in rows] == [
        "RPP", "RPP, first step", "RPP, sampled", "random policy", "best static prompt", "chance",
    ]  # fmt: skip
    for name, ranks in rpp.test_results.ranks.items():
        assert ranks.tolist() == whole[name].tolist()


def test_a_single_test_user_has_no_prompt_of_another(tmp_path, capsys):
    users = MadeUpUsers(**USERS | {"n_test": 1})
    _, rpp, run = play(tmp_path, None, ResultsTable(str(tmp_path / "r")), epochs=1)
    run.fit(rpp, datamodule=users)
    run.test(rpp, datamodule=users, verbose=False)
    assert "permut" not in (tmp_path / "r/results.csv").read_text() + capsys.readouterr().err
    users = MadeUpUsers(**USERS | {"n_test": 2, "batch_size": 1})
    run.limit_test_batches = 1
    run.test(rpp, datamodule=users, verbose=False)
    assert len(rpp.test_results.ranks["RPP"]) == 1
    assert "RPP, prompts permuted" not in rpp.test_results.ranks


@pytest.mark.parametrize("name", ["max_calls", "memory_gb", "cache_gb"])
def test_limits_are_positive(name):
    with pytest.raises(InputError, match=rf"environment\.{name} is 0: choose more than 0"):
        environment("", **{name: 0})


def test_budget_in_words_by_hand():
    before = Counters(calls=2, prompt_tokens=100, reply_tokens=10, cache_hits=1)
    after = Counters(calls=6, prompt_tokens=900, reply_tokens=50, cache_hits=5)
    assert budget(1000, before, after, 8.0, None) == (
        "Budget: at most 1,000 calls, about 200,000 prompt and 10,000 reply tokens and"
        f" {timedelta(seconds=2000)} hours by the first 4; what the cache knows is free."
    )
    assert budget(1000, before, after, 8.0, 10).startswith(
        "Budget: at most 10 calls, about 2,000 prompt and 100 reply tokens and 0:00:20 hours"
    )
    paid = replace(after, cost=0.02)
    assert " and 0:33:20 hours at a cost of 5.00 by the first 4;" in budget(
        1000, before, paid, 8.0, None
    )
    assert budget(None, before, after, 8.0, None) == (
        "Budget: calls without limit, each about 200 prompt and 10 reply tokens, 2.00 s."
    )
    uncounted = Counters(calls=6)  # by a model of the user's own: once "about 0 tokens"
    assert "calls, an unknown number of tokens and 0:33:20 hours" in budget(
        1000, Counters(calls=2), uncounted, 8.0, None
    )
    known = Counters(calls=2, cache_hits=9)
    assert budget(1000, before, known, 0.1, None) == (
        "Budget: at most 1,000 calls; the first 8 prompts are in the cache."
    )
