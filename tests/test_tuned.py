"""Tuned adapters: the best one is kept and used, and whom it has learnt from is written down."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import PEFT
from lightning import seed_everything
from pipeline import trainer
from safetensors.torch import load_file
from tuning_setup import adapter as adapter
from tuning_setup import data as data
from tuning_setup import loaded

from rpp.callbacks.environment import RewardEnvironment
from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.llms.tuned import marks, n_learnt_from
from rpp.tuning.export import card
from rpp.types import HELD_OUT, InputError

pytestmark = PEFT


def test_the_best_adapter_is_kept_and_used(adapter, data, tmp_path, wide_llm_folder):
    seed_everything(0, verbose=False)
    run = trainer(tmp_path, max_epochs=2, limit_train_batches=4)
    run.fit(adapter(), datamodule=data)
    folder = tmp_path / "adapter"
    about = json.loads((folder / "tuning.json").read_text())
    best = max(point["ndcg@10"] for point in about["curve"])
    assert about["validation"]["ndcg@10"]["mean"] == pytest.approx(best)
    assert about["n_sequences"] in (32, 64)  # batches of 8, 4 an epoch
    assert f"{about['n_sequences']} sequences" in (folder / "README.md").read_text()
    assert (about["data"], about["seed"]) == ("custom", 0)
    held_out = [e.user_id for split in HELD_OUT for e in data.episodes(split)]
    assert about["left_out"] == marks(held_out)
    weights = load_file(folder / "adapter_model.safetensors")
    assert {str(weight.dtype) for weight in weights.values()} == {"torch.bfloat16"}
    assert all("lora_" in name for name in weights)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(wide_llm_folder)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".adapter")]
    trainer(tmp_path, max_epochs=1, limit_train_batches=1).fit(adapter(), datamodule=data)
    former = load_file(tmp_path / "adapter.previous/adapter_model.safetensors")
    assert all(torch.equal(former[name], weight) for name, weight in weights.items())
    folder = tmp_path / "adapter.previous"
    tuned = HuggingFaceLanguageModel(str(wide_llm_folder), dtype="float32", adapter=str(folder))
    plain = HuggingFaceLanguageModel(str(wide_llm_folder), dtype="float32")
    episodes = data.episodes("validation")
    titles = [[f" {item.title}" for item in episode.candidates] for episode in episodes]
    prompts = [f"Seen:\n1. {episode.history[-1].title}" for episode in episodes]
    assert tuned.score(prompts, titles) != plain.score(prompts, titles)
    going_on = loaded(adapter(start=str(folder), rank=2))  # the rank is that of the start
    assert {p.shape[0] for n, p in going_on.network.named_parameters() if "lora_A" in n} == {8}
    theirs, ours = tuned.score(prompts, titles), going_on.llm.score(prompts, titles)
    for row, other in zip(ours, theirs, strict=True):
        assert row == pytest.approx(other, abs=0.01)
    assert any(p.requires_grad for p in going_on.network.parameters())


@pytest.mark.parametrize(
    ("likelihood_weight", "start", "scale", "told"),
    [
        (1.0, None, 1.0, ("packed histories", "it began with fresh weights.")),
        (1.0, None, 0.3, ("packed histories", "it began with fresh weights.")),
        (0.5, "first", 1.0, ("packed histories", "with the adapter in `first`.")),
        (0.0, "first", 0.3, ("targets among candidates", "in `first`, scaled by 0.3.")),
    ],
)
def test_the_card_tells_what_was_learnt_from_what(likelihood_weight, start, scale, told):
    about = dict.fromkeys(("base_model", "data", "n_users", "n_sequences", "steps", "seed"), 7)
    about |= {"started_from": start, "start_scale": scale, "likelihood_weight": likelihood_weight}
    text = card(about | {"targets": "training"}, shows_candidates=False)
    assert all(words in text for words in (*told, "no one's last two interactions"))
    text = card(about | {"targets": "validation"}, shows_candidates=False)
    assert all(words in text for words in (*told, "no one's last interaction."))


def test_users_an_adapter_may_have_learnt_from_are_counted(data, tmp_path, wide_llm_folder):
    held_out = [e.user_id for split in HELD_OUT for e in data.episodes(split)]
    about = {"data": "custom", "left_out": marks(held_out)}
    (tmp_path / "tuning.json").write_text(json.dumps(about))
    assert n_learnt_from(str(tmp_path), "custom", held_out) == 0
    assert n_learnt_from(str(tmp_path), "custom", [*held_out, "someone"]) == 1
    assert n_learnt_from(str(tmp_path), "another", ["someone"]) == 0
    assert n_learnt_from(str(tmp_path / "none"), "custom", ["someone"]) == 0
    assert not set(held_out) & set(about["left_out"])  # names are not passed on
    llm = HuggingFaceLanguageModel(str(wide_llm_folder), adapter=str(tmp_path))
    known = llm.fingerprint

    class Run:
        datamodule = data

    RewardEnvironment(llm)._warn_of_learnt_users(Run)
    about["left_out"] = about["left_out"][3:]
    (tmp_path / "tuning.json").write_text(json.dumps(about))
    with pytest.warns(UserWarning, match=f"learnt from .* of 3 of the {len(held_out)} validation"):
        RewardEnvironment(llm)._warn_of_learnt_users(Run)
    again = HuggingFaceLanguageModel(str(wide_llm_folder), adapter=str(tmp_path))
    assert again.fingerprint == known  # what is told of an adapter does not change its replies


def test_whom_the_adapter_to_start_from_has_learnt_from_is_not_left_out(adapter, data, tmp_path):
    trainer(tmp_path, max_epochs=1, limit_train_batches=1).fit(adapter(), datamodule=data)
    first = tmp_path / "first"
    (tmp_path / "adapter").rename(first)
    about = json.loads((first / "tuning.json").read_text())
    assert (about["seed"], about["draw_seed"]) == (0, 0)
    about["left_out"] = about["left_out"][3:]  # it learnt from three who are now left out
    about["left_out_earlier"] = {"other": marks(["someone"])}
    (first / "tuning.json").write_text(json.dumps(about))
    more = adapter(start=str(first))
    trainer(tmp_path, max_epochs=1, limit_train_batches=1).fit(more, datamodule=data)
    known = json.loads((tmp_path / "adapter/tuning.json").read_text())
    assert known["left_out"] == about["left_out"]
    assert known["left_out_earlier"] == about["left_out_earlier"]
    assert n_learnt_from(str(tmp_path / "adapter"), "other", ["someone", "another"]) == 1


def test_an_adapter_that_began_with_one_of_other_data_knows_whom_that_left_out(
    adapter, data, tmp_path
):
    first = tmp_path / "first"
    trainer(tmp_path, max_epochs=1, limit_train_batches=1).fit(adapter(), datamodule=data)
    (tmp_path / "adapter").rename(first)
    about = json.loads((first / "tuning.json").read_text()) | {"data": "other"}
    (first / "tuning.json").write_text(json.dumps(about))
    more = adapter(start=str(first))
    trainer(tmp_path, max_epochs=1, limit_train_batches=1).fit(more, datamodule=data)
    known = json.loads((tmp_path / "adapter/tuning.json").read_text())
    assert known["left_out_earlier"] == {"other": about["left_out"]}
    assert known["left_out"] == sorted(marks(data.left_out))


@pytest.mark.parametrize(
    "broken", ['{"data": "custom", ', '{"left_out": ["a"]}', '{"left_out": 3, "data": "custom"}']
)
def test_what_an_adapter_left_out_cannot_be_read(tmp_path, broken):
    (tmp_path / "tuning.json").write_text(broken)
    with pytest.raises(InputError, match=r"tuning.json does not tell whom .*: restore it"):
        n_learnt_from(str(tmp_path), "custom", ["someone"])


def test_a_checkpoint_of_something_else(adapter):
    with pytest.raises(InputError, match="not written by RankingAdapter"):
        adapter().on_load_checkpoint({"rpp": {}})
