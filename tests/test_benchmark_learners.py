"""The benchmark of learners: worlds by hand, every learner in them, the table of real rewards."""

from __future__ import annotations

import json

import polars as pl
import pytest
import torch

from benchmarks import learners
from benchmarks.learners import CHOOSERS, TABLE, Budget, play
from benchmarks.reward_table import every_prompt, table, unknown_to
from benchmarks.worlds import PlantedWorld, Spreads, TableWorld, table_patterns
from rpp.data.datamodule import EpisodeDataModule
from rpp.data.lightgcn import LightGCNSettings
from rpp.llms.tuned import METADATA_FILE, marks
from rpp.types import InputError

SURE = Spreads(level=0.2, length=0.0, rest=0.001)
"""Next to no luck: who learns anything finds the best prompt."""


def test_a_planted_world_has_the_spreads_asked_for():
    world = PlantedWorld(Spreads(personal=0.06), seed=0, n_users=3000)
    users = torch.arange(3000)
    best = torch.tensor([int(main.argmax()) for main in world.main]).expand(3000, -1)
    common = sum(float(main.max()) for main in world.main)
    assert common == pytest.approx(0.039)
    assert world.gain(users, best) == pytest.approx(0.039, abs=0.005)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack(
        [torch.randint(n, (3000,), generator=generator) for n in world.patterns.n_actions], dim=1
    )
    values, numbers = world.value(users, drawn), torch.zeros(3000).long()
    main = sum(each[drawn[:, k]] for k, each in enumerate(world.main))
    assert float((values - main).std()) == pytest.approx(0.06, rel=0.1)
    luck = world.rewards(users, numbers, drawn) - values - world.levels[:, 0]
    assert float(luck.std()) == pytest.approx((0.112**2 + 0.047**2) ** 0.5, rel=0.05)


@pytest.mark.parametrize("name", CHOOSERS)
def test_every_learner_plays_and_the_reward_model_finds_what_there_is(name):
    budget = Budget(users=40, draws=8)
    gain, n_calls = play(name, PlantedWorld(SURE, seed=1, n_users=200), budget, seed=0)
    assert (0.035 if "reward model" in name else -0.1) < gain <= 0.0391
    n_prompts = {"best of 8 static": 8, "best of 64 static": 64}.get(name)
    assert n_calls == (n_prompts * learners.N_VALIDATION if n_prompts else budget.calls)


@pytest.fixture(scope="module")
def data(tmp_path_factory, custom_csv):
    """Three training users with two targets each."""
    data = EpisodeDataModule(
        "custom", str(tmp_path_factory.mktemp("data")), n_train_users=3, n_validation_users=1,
        n_test_users=1, n_targets=2, custom=custom_csv.files,
        lightgcn=LightGCNSettings(n_epochs=1, dim=8),
    )  # fmt: skip
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.fixture(scope="module")
def rewards(data, tmp_path_factory, tiny_llm_folder):
    """A table of the tiny language model."""
    path = tmp_path_factory.mktemp("table") / "rewards.parquet"
    table(data, None, str(tiny_llm_folder)).write_parquet(path)
    return path


def test_the_table_has_every_prompt_of_every_user_and_target(rewards):
    rows = pl.read_parquet(rewards)
    assert rows["user"].to_list() == [0, 0, 1, 1, 2, 2]
    assert rows["number"].to_list() == [0, 1] * 3
    world = TableWorld(rewards, "custom, frozen")
    assert world.scores.shape == (3, 2, *table_patterns().n_actions)
    for k, prompt in enumerate(every_prompt()):
        actions = torch.tensor([prompt.actions])
        reward = world.rewards(torch.tensor([1]), torch.tensor([1]), actions)
        assert float(reward) == pytest.approx(rows["ndcg"][3][k])
    users = torch.arange(3)
    same = torch.tensor([every_prompt()[5].actions]).expand(3, -1)
    assert world.gain(users, same) == pytest.approx(
        float(world.scores.mean(1).flatten(1)[:, 5].mean() - world.scores.mean())
    )


@pytest.mark.parametrize("name", ["RPP, reward model", "PPO-4", "best of 8 static"])
def test_learners_play_on_the_table(rewards, monkeypatch, name):
    monkeypatch.setattr(learners, "N_VALIDATION", 1)
    world = TableWorld(rewards, "custom, frozen")
    gain, n_calls = play(name, world, Budget(users=1, draws=4, targets=2), seed=0)
    of_user = world.scores.mean(dim=1).flatten(1)
    gains = (of_user - of_user.mean(dim=1, keepdim=True)).flatten()
    assert (gains - gain).abs().min() < 1e-6  # that of a prompt of the table, for one user
    assert n_calls == 8


def test_whom_the_adapter_has_learnt_from_is_not_in_the_table(data, tmp_path):
    users = [e.user_id for e in data.episodes("train")]
    about = {"data": "custom", "left_out": marks(users[2:])}
    (tmp_path / METADATA_FILE).write_text(json.dumps(about))
    assert [e.user_id for e in unknown_to(str(tmp_path), data)] == users[2:]
    assert unknown_to(None, data) == data.episodes("train")
    (tmp_path / METADATA_FILE).write_text(json.dumps(about | {"left_out": []}))
    with pytest.raises(InputError, match="has learnt from all of these users"):
        unknown_to(str(tmp_path), data)


def test_the_report_has_a_row_for_every_learner(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(learners, "PLANTED", learners.PLANTED[:2])
    out = tmp_path / "learners.md"
    names = ["RPP, reward model, common", "best of 8 static"]
    options = ["--worlds", "1", "--table", str(tmp_path / "none"), "--out", str(out)]
    learners.main([*options, "--learners", *names])
    lines = out.read_text().splitlines()
    assert len(lines) == 2 + len(learners.PLANTED) * len(names)
    assert all(f"| {name} |" in out.read_text() for name in names)
    assert out.with_suffix(".png").stat().st_size > 5000
    assert capsys.readouterr().out.splitlines()[2:] == lines[2:]


def test_the_table_of_the_project():
    """At least 150 users, two targets and 64 prompts of each model; no prompt is best for all."""
    assert TABLE.stat().st_size < 2_000_000
    models = pl.read_parquet(TABLE)["model"].unique().sort().to_list()
    assert models == ["ml-100k, frozen", "ml-100k, smollm2-ml-100k-evidence"]
    for model in models:
        world = TableWorld(TABLE, model)
        scores = world.scores.flatten(2)
        assert len(scores) >= 150
        assert scores.shape[1:] == (2, 64)
        assert (world.patterns.n_actions, len(world.vectors)) == ((4, 2, 8), len(scores))
        assert 0 < scores.min() < scores.max() == 1
        assert len(scores.argmax(dim=2).unique()) > 10
