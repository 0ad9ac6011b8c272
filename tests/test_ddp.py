"""Two learner processes end with the numbers of one.

Run as a script this file is one of the processes; the tests start two of it, which costs the
imports once for all of them.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from pipeline import PATTERNS, HashEncoder, MadeUpUsers, environment, module, trainer
from safetensors.torch import load_file, save_file
from torch import distributed
from two_processes import run_two

from rpp.callbacks.environment import RewardEnvironment
from rpp.callbacks.predictions import Predictions
from rpp.callbacks.results import ResultsTable
from rpp.callbacks.reward_log import RewardLog
from rpp.data.shares import SharedBatches, share
from rpp.learners.logged import RewardModelLearner
from rpp.learners.ppo import PPO
from rpp.llms.base import ScriptedLanguageModel
from rpp.llms.controls import answers_at_random, shown_candidates
from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.rewards import read_rewards
from rpp.types import InputError, LanguageModelError, LanguageModelStop

N_EPOCHS = 2
USERS = {"n_train": 11, "n_validation": 5, "n_test": 7, "batch_size": 4}
"""Batches of 4, 4 and 3 training users: processes have 2 and 2, 2 and 2, 2 and 1."""

FAILING = {"train": (0, 4), "validation": (1,), "test": (5,)}
"""Users whose every call fails."""


class Record(Callback):
    """Keeps what this process ends with."""

    def __init__(self, folder):
        self.folder = folder
        self.played = []

    def on_train_epoch_end(self, trainer, pl_module):
        # of every step of an epoch, who played it
        self.played.append([[e.user for e in step.episodes] for step in pl_module.train_steps])

    def on_train_end(self, trainer, pl_module):
        rank = trainer.global_rank
        state = {name: value.clone() for name, value in pl_module.state_dict().items()}
        save_file(state, self.folder / f"weights_{rank}.safetensors")
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        record = {"logged": logged, "played": self.played}
        (self.folder / f"fit_{rank}.json").write_text(json.dumps(record))

    def on_test_end(self, trainer, pl_module):
        record = {name: ranks.tolist() for name, ranks in pl_module.test_results.ranks.items()}
        record["replies"] = dict(pl_module.test_results.replies)
        record["own_calls"] = pl_module.ranker.counters.calls
        (self.folder / f"test_{trainer.global_rank}.json").write_text(json.dumps(record))


def reword(prompt):
    """A refiner that finds other words in every process."""
    sentence = prompt.partition("Instruction: ")[2].partition("\n")[0]
    return f"Wording {os.environ.get('LOCAL_RANK', 0)}: {sentence}"


def play(folder: Path, n_processes: int) -> None:
    """Fit, test and predict; then a fit and a test that a budget ends."""
    users = MadeUpUsers(**USERS)
    failing = {
        frozenset(item.title for item in users.episodes(split)[k].candidates)
        for split, places in FAILING.items()
        for k in places
    }

    def reply(prompt):
        if frozenset(shown_candidates(prompt)) in failing:
            return LanguageModelError("no answer")
        return answers_at_random(prompt)

    def run(*callbacks, max_calls=None, refiner=None, **options):
        env = environment(reply, max_calls=max_calls, refiner=refiner)
        options |= {"strategy": "ddp"} if n_processes > 1 else {}
        return trainer(folder, env, *callbacks, devices=n_processes, **options)

    def wrong(prompt):
        if frozenset(shown_candidates(prompt)) in failing:
            raise InputError("this model cannot be asked that")
        return answers_at_random(prompt)

    # the users of one process alone, whose error ends the others too
    with pytest.raises(InputError, match="cannot be asked that"):
        trainer(
            folder,
            environment(wrong),
            devices=n_processes,
            max_epochs=1,
            **({"strategy": "ddp"} if n_processes > 1 else {}),
        ).fit(module(n_steps=3, n_static_prompts=1), users)

    table = ResultsTable(str(folder / "results"))
    rewards = RewardLog(str(folder / "rewards.parquet"))
    made = run(Record(folder), table, rewards, max_epochs=N_EPOCHS)
    rpp = module(n_steps=3, n_static_prompts=3, actor_lr=0.003, critic_lr=0.003)
    made.fit(rpp, users)
    made.test(rpp, users, verbose=False)
    predictions = Predictions(str(folder / "predictions.jsonl"))
    refiner = ScriptedLanguageModel(reword, name="refiner")
    run(predictions, refiner=refiner).predict(rpp, users)

    joint = PPO(patterns=PATTERNS, n_prompts=8, n_steps=3, n_static_prompts=1)
    joint.encoder = HashEncoder()
    (folder / "ppo").mkdir(exist_ok=True)
    run(Record(folder / "ppo"), max_epochs=1).fit(joint, users)

    logged = RewardModelLearner(
        patterns=PATTERNS, history_lengths=[1, 4, 10], n_static_prompts=1, n_factors=2
    )
    (folder / "logged").mkdir(exist_ok=True)
    run(Record(folder / "logged"), max_epochs=2).fit(logged, users)

    poor = module(n_steps=3, n_static_prompts=3)
    with pytest.raises(LanguageModelStop, match="max_calls"):
        run(max_calls=41, max_epochs=N_EPOCHS).fit(poor, users)
    part = ResultsTable(str(folder / "part"))
    with pytest.raises(LanguageModelStop, match="max_calls"):
        run(part, max_calls=20).test(rpp, users, verbose=False)


def test_what_processes_average_are_numbers(tmp_path, monkeypatch):
    """Lightning puts numbers on the module's device; nccl takes no tensor on the CPU."""
    logged = {}

    def log(self, name, value, **options):
        if name.startswith("val"):
            logged[name] = value

    monkeypatch.setattr(LightningModule, "log", log)
    run = trainer(tmp_path, environment(answers_at_random), max_epochs=1)
    run.fit(module(n_steps=2, n_static_prompts=1), MadeUpUsers(**USERS))
    assert {"val/ndcg@10", "val_ndcg_by_step/01"} <= logged.keys()
    assert all(isinstance(value, float) for value in logged.values())


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Folder of what one process ends with."""
    folder = tmp_path_factory.mktemp("one")
    play(folder, 1)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Folder of what two processes end with."""
    folder = tmp_path_factory.mktemp("two")
    said = run_two(__file__, str(folder))
    (folder / "said.txt").write_text(said[1])
    return folder


def read(path):
    return json.loads(path.read_text())


def test_every_training_user_plays_once_an_epoch_in_the_batch_of_one_process(one, two):
    whole = read(one / "fit_0.json")["played"]
    parts = [read(two / f"fit_{rank}.json")["played"] for rank in range(2)]
    assert len(whole) == N_EPOCHS
    for epoch in range(N_EPOCHS):
        steps = [first + second for first, second in zip(*(p[epoch] for p in parts), strict=True)]
        assert steps == whole[epoch]
        assert sorted(user for step in steps[::3] for user in step) == list(range(11))


@pytest.mark.parametrize("learner", [".", "ppo", "logged"])
def test_two_processes_learn_the_weights_of_one(one, two, learner):
    expected = load_file(one / learner / "weights_0.safetensors")
    for rank in range(2):
        weights = load_file(two / learner / f"weights_{rank}.safetensors")
        assert weights.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_two_processes_log_the_numbers_of_one(one, two):
    expected = read(one / "fit_0.json")["logged"]
    assert {"train/reward", "val/ndcg@10", "loss/actor_role", "entropy/role"} <= expected.keys()
    for rank in range(2):
        logged = read(two / f"fit_{rank}.json")["logged"]
        same = [name for name in expected if not name.startswith("environment/")]
        assert {n: logged[n] for n in same} == pytest.approx({n: expected[n] for n in same}, 1e-5)


def test_the_table_holds_every_test_user_once_in_their_order(one, two):
    expected = read(one / "test_0.json")
    own_calls = expected.pop("own_calls")
    assert len(expected["RPP"]) == len(expected["RPP, prompts permuted"]) == 7
    assert np.isnan(expected["RPP"]).tolist() == [user == 5 for user in range(7)]
    records = [read(two / f"test_{rank}.json") for rank in range(2)]
    calls = [record.pop("own_calls") for record in records]
    for record in records:
        assert record.pop("replies") == {"valid": 6, "failed": 1}
        assert record.keys() == expected.keys() - {"replies"}
        for name, ranks in record.items():
            assert ranks == pytest.approx(expected[name], nan_ok=True), name
    assert min(calls) > 0
    table, ours = (read(folder / "results" / "results.json") for folder in (one, two))
    assert ours["counters"]["calls"] == sum(calls)
    assert table["counters"]["calls"] == own_calls
    same = ("n_users", "inference_steps", "static_prompt", "replies", "target_position")
    for key in (*same, "permuted_prompts"):
        assert ours[key] == table[key]
    assert (one / "results/results.csv").read_text() == (two / "results/results.csv").read_text()


def test_the_reward_log_holds_the_steps_of_all_processes(one, two):
    log, ours = (read_rewards(folder / "rewards.parquet") for folder in (one, two))
    assert log.height == N_EPOCHS * 3 * 11
    assert ours.drop("probability").equals(log.drop("probability"))
    assert ours["probability"].to_list() == pytest.approx(log["probability"].to_list(), 1e-3)


def test_predictions_of_all_processes_are_in_one_file(one, two):
    lines, expected = (
        [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        for folder in (two, one)
    )
    assert [line["user"] for line in lines] == [f"u{user}" for user in range(16, 23)]
    for line, same in zip(lines, expected, strict=True):
        ours, theirs = line.pop("probabilities"), same.pop("probabilities")
        assert ours.keys() == theirs.keys()
        for name, options in ours.items():  # weights are the same but for rounding
            assert options == pytest.approx(theirs[name], abs=1e-4)
    assert lines == expected
    said = [sentence for line in lines for sentence in line["sentences"].values()]
    assert any(sentence.startswith("Wording 0: ") for sentence in said)


def test_a_budget_is_shared_and_ends_all_processes(two):
    """A process that went on alone would wait for the others without end, in fit as in test."""
    record = read(two / "part" / "results.json")
    assert record["n_users"] == 4
    assert record["counters"]["calls"] <= 20


def test_only_the_first_process_speaks(two):
    assert "Budget" not in (two / "said.txt").read_text()


def test_processes_leave_the_group_before_they_end(two):
    """Otherwise gloo's threads abort one process in ten at its end."""
    assert [(two / f"left_{rank}").read_text() for rank in range(2)] == ["True", "True"]


@pytest.mark.parametrize(
    ("n_rows", "batch_size", "sizes"),
    [
        (11, 4, [[2, 2, 2], [2, 2, 1]]),
        (9, 4, [[2, 3], [2, 2]]),
        (3, 5, [[2], [1]]),
        (2, 2, [[1], [1]]),
    ],
    ids=["uneven", "last one joins", "one batch", "one each"],
)
def test_shares_by_hand(n_rows, batch_size, sizes):
    parts = [
        list(SharedBatches(n_rows, batch_size, shuffle=True, seed=3, rank=r, n_processes=2))
        for r in range(2)
    ]
    assert [[len(batch) for batch in part] for part in parts] == sizes
    whole = list(SharedBatches(n_rows, n_rows, shuffle=True, seed=3))
    together = [row for pair in zip(*parts, strict=True) for batch in pair for row in batch]
    assert [together] == whole
    assert sorted(together) == list(range(n_rows))


def test_an_epoch_has_an_order_of_its_own():
    batches = SharedBatches(20, 6, shuffle=True)
    first = list(batches)
    batches.set_epoch(1)
    assert list(batches) != first
    assert len(batches) == len(first) == 4


def test_a_process_without_users_is_refused():
    assert share("abcde", 0, 2) == "abc"
    with pytest.raises(InputError, match=r"1 users cannot be shared by 2 processes: lower"):
        SharedBatches(5, 1, n_processes=2)


def test_another_strategy_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "world_size", 2)
    with pytest.raises(
        InputError, match=r"among 2 processes this way: set trainer\.strategy to ddp"
    ):
        trainer(tmp_path, environment(), max_epochs=1).fit(module(), MadeUpUsers(**USERS))


def test_a_model_over_all_gpus_in_every_process_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "world_size", 2)
    llm = HuggingFaceLanguageModel("anything", device_map="auto")
    with pytest.raises(InputError, match=r"device_map: auto would lay .* set trainer.devices to 1"):
        RewardEnvironment(llm).setup(Trainer(logger=False, accelerator="cpu"), module(), "fit")


if __name__ == "__main__":
    warnings.filterwarnings("error", ".*sync_dist.*")  # numbers that differ between processes
    to, rank = Path(sys.argv[1]), os.environ["LOCAL_RANK"]
    # registered first, so it runs last
    atexit.register(lambda: (to / f"left_{rank}").write_text(str(not distributed.is_initialized())))
    play(to, 2)
