"""The reward log: what is written, read, refused, gone on with and put aside."""

from __future__ import annotations

import math
from dataclasses import replace

import polars as pl
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from own_learner import MeanReward
from pipeline import PATTERNS, HashEncoder, MadeUpUsers, environment, module, trainer

from rpp.callbacks.reward_log import RewardLog
from rpp.learners.ppo import PPO
from rpp.llms.controls import answers_at_random, shown_candidates
from rpp.rewards import (
    SCHEMA,
    append_rewards,
    environment_fingerprint,
    put_aside,
    read_names,
    read_rewards,
)
from rpp.types import InputError, LanguageModelError, TargetAccessError

NAMES = ("role", "format")
ROW = {
    "user": "u1", "number": 0, "target": "i9", "split": "train", "epoch": 0, "step": 1,
    "actions": [2, 0], "history_length": 4, "reward": 0.5, "probability": 0.25, "patterns": "p",
    "environment": "e",
}  # fmt: skip


def table(*changes):
    return pl.DataFrame([ROW | change for change in changes or ({},)], SCHEMA)


def test_rows_are_read_back_as_written(tmp_path):
    path = tmp_path / "new/rewards.parquet"
    rows = table({}, {"user": "u2", "reward": None, "probability": None})
    append_rewards(path, rows, NAMES)
    more = table({"epoch": 1}, {"epoch": 1, "number": 1})
    append_rewards(path, more, NAMES)
    assert read_rewards(path).equals(pl.concat([rows, more]))
    assert read_rewards(str(path)).schema == SCHEMA
    assert read_names(path) == NAMES
    assert [file.name for file in path.parent.iterdir()] == ["rewards.parquet"]


def test_a_step_played_again_is_added_once(tmp_path):
    """A resumed run plays the epoch anew in which it was stopped; what failed counts now."""
    path = tmp_path / "rewards.parquet"
    failed = {"user": "u2", "reward": None}
    append_rewards(path, table({}, {}, failed), NAMES)  # one prompt drawn twice in a step
    others = ({"actions": [2, 1]}, {"environment": "other"}, {"user": "u2"})
    append_rewards(path, table({}, {}, *others), NAMES)
    assert read_rewards(path).equals(table({}, {}, failed, *others))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no reward log .*: fit first"),
        (b"PAR1 cut", "not a readable Parquet file"),
        (pl.DataFrame({"user": ["u1"]}), "was not written as a reward log"),
    ],
    ids=["missing", "damaged", "foreign"],
)
def test_what_is_no_log_is_refused(tmp_path, content, message):
    path = tmp_path / "rewards.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        content.write_parquet(path)
    with pytest.raises(InputError, match=message):
        read_rewards(path)
    if content is not None:
        before = path.read_bytes()
        with pytest.raises(InputError, match=message):
            append_rewards(path, table(), NAMES)
        assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (table({"split": "test"}), "rewards of test users"),
        (table({"reward": 1.5}), "has the reward 1.5"),
        (table({"probability": -0.1}), "has the probability -0.1"),
        (table({"reward": math.nan}), "has the reward nan"),
        (table().drop("number"), "no column 'number' of the type Int64"),
        (table().cast({"reward": pl.String}), "no column 'reward' of the type Float64"),
    ],
    ids=["test users", "reward", "probability", "nan", "missing column", "type"],
)
def test_rows_that_no_log_may_hold(tmp_path, rows, message):
    path = tmp_path / "rewards.parquet"
    append_rewards(path, table(), NAMES)
    with pytest.raises(InputError, match=message):
        append_rewards(path, rows, NAMES)
    assert read_rewards(path).equals(table())


def test_rewards_of_other_patterns_are_not_mixed(tmp_path):
    path = tmp_path / "rewards.parquet"
    append_rewards(path, table(), NAMES)
    with pytest.raises(InputError, match="of the patterns role, format, not of role, history"):
        append_rewards(path, table(), ("role", "history"))


def test_a_full_disk_costs_nothing_logged(tmp_path, monkeypatch):
    path = tmp_path / "rewards.parquet"
    append_rewards(path, table(), NAMES)

    def full(self, file, **options):
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    with pytest.raises(OSError, match="No space left"):
        append_rewards(path, table({"epoch": 1}), NAMES)
    assert read_rewards(path).equals(table())
    assert [file.name for file in tmp_path.iterdir()] == ["rewards.parquet"]


def test_the_log_of_a_former_fit_is_kept(tmp_path):
    path = tmp_path / "rewards.parquet"
    put_aside(path)  # there is none
    append_rewards(path, table(), NAMES)
    put_aside(path)
    assert not path.exists()
    assert read_rewards(tmp_path / "rewards.previous.parquet").equals(table())


def test_fingerprint_of_the_environment():
    one = {"language model": "a", "decoding": "generate"}
    assert environment_fingerprint(one) == environment_fingerprint(dict(reversed(one.items())))
    assert environment_fingerprint(one) != environment_fingerprint(one | {"decoding": "likelihood"})


# What a fit writes


USERS = {"n_train": 5, "n_validation": 2, "n_test": 2, "batch_size": 2}


def fit(path, model, *, max_epochs=1, kept=None, ckpt_path=None, users=None, reply=None):
    """A fit with the log; its checkpoints are in a folder, if it keeps any."""
    callbacks = [environment(reply or answers_at_random), RewardLog(str(path))]
    if kept is not None:
        callbacks.append(ModelCheckpoint(kept, filename="{epoch}", save_top_k=-1))
    run = trainer(path.parent, *callbacks, max_epochs=max_epochs)
    run.fit(model, users or MadeUpUsers(**USERS), ckpt_path=ckpt_path)
    return model


def test_every_reward_of_training_is_logged(tmp_path):
    """Users with two targets each, one of whom gets no answer."""
    users = MadeUpUsers(**USERS)
    latest = users.episodes("train")
    users._episodes["train"] = [
        each for e in latest for each in (e, replace(e, number=1, history=e.history[:9]))
    ]
    lost = frozenset(item.title for item in latest[3].candidates)

    def reply(prompt):
        failing = frozenset(shown_candidates(prompt)) == lost
        return LanguageModelError("no answer") if failing else answers_at_random(prompt)

    path = tmp_path / "rewards.parquet"
    model = fit(path, module(n_steps=2), max_epochs=2, users=users, reply=reply)
    rows = read_rewards(path)
    assert rows.height == 2 * 2 * 2 * 5
    keys = rows.select("epoch", "step", "user", "number").rows()
    assert len(set(keys)) == 40
    assert keys == sorted(keys)
    assert read_names(path) == model.patterns.names
    last = rows.filter(epoch=1, step=1)
    step_of = {
        (e.user_id, e.number): (step, k)
        for step, (number, _) in zip(model.train_steps, model.train_draws, strict=True)
        if number == 1
        for k, e in enumerate(step.episodes)
    }
    for row in last.iter_rows(named=True):
        step, k = step_of[row["user"], row["number"]]
        episode = step.episodes[k]
        assert row["target"] == f"i{episode.candidates[episode.target].index}"
        assert row["actions"] == step.actions[k].tolist()
        assert row["history_length"] == step.lengths[k]
        assert row["reward"] == (None if row["user"] == "u3" else step.rewards()[k].item())
        assert 0 < row["probability"] < 1
    assert set(rows["split"]) == {"train"}
    assert set(rows["patterns"]) == {model.patterns.fingerprint}
    assert rows["environment"].n_unique() == 1
    assert rows.filter(pl.col("reward").is_null())["user"].unique().to_list() == ["u3"]


def ppo(n_prompts):
    made = PPO(patterns=PATTERNS, n_steps=1, n_static_prompts=1, n_prompts=n_prompts)
    made.encoder = HashEncoder()
    return made


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda: module(n_steps=1), lambda patterns: 1 / math.prod(patterns.n_actions)),
        (lambda: ppo(None), lambda patterns: 1 / math.prod(patterns.n_actions)),
        (lambda: ppo(8), lambda patterns: 1 / 8),
        (lambda: MeanReward(patterns=PATTERNS, n_steps=1), lambda patterns: None),
    ],
    ids=["RPP", "PPO-4", "PPO-1", "own"],
)
def test_probability_of_a_prompt(tmp_path, model, expected):
    """Untrained policies are close to uniform; a learner of one's own need not tell."""
    users = MadeUpUsers(**USERS | {"batch_size": 5})
    model = fit(tmp_path / "rewards.parquet", model(), users=users)
    found = read_rewards(tmp_path / "rewards.parquet")["probability"].to_list()
    wanted = expected(model.patterns)
    assert found == [wanted if wanted is None else pytest.approx(wanted, rel=0.3)] * 5


@pytest.mark.filterwarnings("ignore:.*exists and is not empty:UserWarning")
def test_a_resumed_fit_goes_on_with_the_log(tmp_path):
    """It has the rows of an uninterrupted one, also when it plays an epoch for a second time."""
    whole, parts = tmp_path / "whole.parquet", tmp_path / "parts.parquet"
    kept = tmp_path / "kept"
    again = {"max_epochs": 2, "kept": kept, "ckpt_path": kept / "epoch=0.ckpt"}
    fit(whole, module(n_steps=1), max_epochs=2)
    fit(parts, module(n_steps=1), kept=kept)
    for _ in range(2):
        fit(parts, module(n_steps=1), **again)
        assert read_rewards(parts).equals(read_rewards(whole))
    parts.write_bytes(b"broken")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        fit(parts, module(n_steps=1), **again)


def test_a_fresh_fit_begins_anew_and_keeps_the_former_log(tmp_path):
    path = tmp_path / "rewards.parquet"
    append_rewards(path, table(), NAMES)
    fit(path, module(n_steps=1))
    assert read_rewards(tmp_path / "rewards.previous.parquet").equals(table())
    assert read_rewards(path).height == 5


def test_rewards_of_test_users_stay_out(tmp_path):
    """Planted among the training users, whose targets are read."""
    users = MadeUpUsers(**USERS)
    users._episodes["train"] = [replace(e, split="test") for e in users.episodes("train")]
    with pytest.raises(TargetAccessError):
        fit(tmp_path / "rewards.parquet", module(n_steps=1), users=users)
    assert not (tmp_path / "rewards.parquet").exists()
