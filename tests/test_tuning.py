"""LoRA adapters: what they learn from, what the losses are, and that they teach something."""

from __future__ import annotations

import json
import math
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import save_llm
from lightning import seed_everything
from pipeline import trainer
from safetensors.torch import load_file

from rpp.callbacks import RewardEnvironment
from rpp.cli import main, run
from rpp.data.interactions import load_training_pairs
from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.llms.tuned import marks, n_learnt_from
from rpp.prompts.compose import Display
from rpp.prompts.patterns import load_patterns
from rpp.tuning.datamodule import InstructionDataModule
from rpp.tuning.instructions import draw_instruction
from rpp.tuning.module import RankingAdapter
from rpp.types import HELD_OUT, InputError, Item

ROOT = Path(__file__).parent.parent
PATTERNS = load_patterns("conf/patterns/movies.yaml")
CATALOGUE = [Item(k, f"Picture {k:03d}") for k in range(60)]
OWN = CATALOGUE[:12]
SEEN = frozenset(range(20))

# peft 0.21 reads an attribute that transformers 5 has renamed
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


def draw(seed=0, **options):
    rng = np.random.default_rng(seed)
    return draw_instruction(OWN, CATALOGUE, SEEN, PATTERNS, rng, **options)


def parts(text, spans):
    return [text[a:b] for a, b in spans]


def test_packed_history_goes_on_where_the_prompt_ends():
    lengths = set()
    for seed in range(40):
        made = draw(seed, max_history=5)
        shown = parts(made.prompt, made.prompt_spans)
        told = parts(made.output, made.output_spans)
        assert [*shown, *told] == [f" {item.title}\n" for item in OWN]
        assert made.candidates[0] == told[0].strip()
        assert made.output.startswith(f"1. {told[0].strip()}\n2. ")
        lengths.add(len(shown))
    assert lengths == {1, 2, 3, 4, 5}


def test_rankings_name_the_target_first_and_learn_the_output_alone():
    firsts = set()
    for seed in range(40):
        made = draw(seed, display=Display(show_candidates=True))
        assert made.prompt_spans == ()
        told = [part.strip() for part in parts(made.output, made.output_spans)]
        assert told == list(made.candidates)
        assert told[0] == OWN[-1].title
        listed = [
            line[3:] for line in made.prompt.split("\n") if line[1:3] == ". " and line[0] > "9"
        ]
        assert sorted(listed) == sorted(told)
        firsts.add(listed.index(told[0]))
    assert len(firsts) > 5  # the target's position varies


def test_rankings_by_identifier():
    made = draw(display=Display(show_candidates=True, answer="identifiers"))
    told = [part.strip() for part in parts(made.output, made.output_spans)]
    assert sorted(told) == list("ABCDEFGHIJ")
    by_letter = dict(
        line.split(". ", 1)
        for line in made.prompt.split("\n")
        if line[1:3] == ". " and line[0] > "9"
    )
    assert [by_letter[letter] for letter in told] == list(made.candidates)


def test_negatives_are_new_to_the_user_and_different():
    for seed in range(20):
        made = draw(seed)
        others = made.candidates[1:]
        assert len(set(made.candidates)) == 10
        assert all(int(title.split()[1]) not in SEEN for title in others)


def test_prompts_cover_the_whole_action_space():
    texts = [draw(seed).prompt for seed in range(300)]
    for sentence in (*PATTERNS.role, *PATTERNS.reasoning, *(f.titles for f in PATTERNS.format)):
        shown = sentence.replace("{n_candidates}", "10")
        assert any(shown in text for text in texts)


@pytest.fixture
def data(make_prepared, custom_csv):
    prepared = make_prepared(40, 20, 20)
    made = InstructionDataModule(
        name="custom",
        data_dir=str(prepared.folder.parent),
        n_train_users=40,
        n_validation_users=20,
        n_test_users=20,
        custom=custom_csv.files,
        batch_size=8,
        n_items=12,
        max_history=6,
    )
    made.prepare_data()
    made.setup("fit")
    return made


def test_nobody_who_validates_or_tests_is_learnt_from(data):
    held_out = {e.user for split in ("validation", "test") for e in data.episodes(split)}
    assert held_out.isdisjoint(data.sequences)
    assert {e.user for e in data.episodes("train")} <= set(data.sequences)
    users, items = load_training_pairs(data.folder)
    for user in list(data.sequences)[:50]:
        assert [item.index for item in data.sequences[user]] == items[users == user].tolist()


def test_an_epoch_covers_the_interactions_once_and_differs_from_the_next(data):
    loader = data.train_dataloader()
    stretches = [stretch for batch in loader for stretch in batch]
    assert len(stretches) == len(set(stretches))
    expected = sum(math.ceil(len(items) / 12) for items in data.sequences.values())
    assert len(stretches) == expected
    user = next(user for user, items in data.sequences.items() if len(items) > 15)
    assert data.draw(user, 0, 0) == data.draw(user, 0, 0)
    assert data.draw(user, 0, 0) != data.draw(user, 0, 1)
    assert data.draw(user, 0, 0) != data.draw(user, 1, 0)


def test_another_draw_seed_draws_anew_from_the_same_users(data):
    user = next(user for user, items in data.sequences.items() if len(items) > 15)
    before, drawn = list(chain(*data.train_dataloader())), data.draw(user, 0, 0)
    held_out = data.left_out
    data.draw_seed = 4
    assert data.draw(user, 0, 0) != drawn
    after = list(chain(*data.train_dataloader()))
    assert after != before
    assert sorted(after) == sorted(before)
    data.setup("fit")
    assert data.left_out == held_out


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_draw_seed_out_of_range(seed):
    with pytest.raises(InputError, match=f"draw_seed is {seed}: give a number from 0 to"):
        InstructionDataModule(name="ml-100k", draw_seed=seed)


def test_nobody_left_to_tune_on(data, monkeypatch):
    monkeypatch.setattr(
        "rpp.tuning.datamodule.load_training_pairs",
        lambda folder: (np.zeros(0, dtype=int), np.zeros(0, dtype=int)),
    )
    with pytest.raises(InputError, match=r"no user of .* is left to tune on"):
        data.setup("fit")


@pytest.mark.parametrize("wrong", [{"n_items": 1}, {"max_history": 0}])
def test_stretches_too_short_are_refused(wrong):
    with pytest.raises(InputError, match="at least 2 and 1 are needed"):
        InstructionDataModule(**wrong)


@pytest.fixture(scope="module")
def wide_llm_folder(tmp_path_factory):
    return save_llm(tmp_path_factory.mktemp("wide_llm"), width=64)


@pytest.fixture
def adapter(wide_llm_folder, tmp_path):
    def make(**options):
        llm = HuggingFaceLanguageModel(str(wide_llm_folder), dtype="float32", device="cpu")
        settings = {"rank": 8, "alpha": 16, "lr": 0.02} | options
        return RankingAdapter(llm, str(tmp_path / "adapter"), **settings)

    return make


def loaded(made):
    """The adapter around its model, as the trainer would load it."""

    class Stub:
        class strategy:
            root_device = torch.device("cpu")

    made._trainer = Stub()
    made.configure_model()
    made._trainer = None
    return made


def test_only_titles_are_learnt(adapter):
    made = loaded(adapter())
    instruction = draw()
    ids, learnt = made.encode(instruction)
    text = made.llm.tokenizer.decode([i for i, yes in zip(ids, learnt, strict=True) if yes])
    assert text.replace(" ", "").split() == [
        item.title.replace(" ", "") for item in OWN
    ]  # fmt: skip
    whole = made.llm.tokenizer.decode(ids)
    assert whole == made.llm.render(instruction.prompt) + instruction.output


def test_a_ranking_is_learnt_with_its_end_and_a_history_is_not(adapter):
    made = loaded(adapter())
    end = made.llm.tokenizer.eos_token_id
    ids, learnt = made.encode(draw(display=Display()))
    assert (ids[-1], learnt[-1]) == (end, True)
    ids, _ = made.encode(draw())
    assert end not in ids[-1:]


def test_an_instruction_cut_before_its_reply_is_refused(adapter):
    """Its loss would be the mean of nothing, and the adapter gone."""
    made = loaded(adapter(max_tokens=20))
    with pytest.raises(InputError, match="nothing to be learnt among its first 20"):
        made.encode(draw(display=Display()))


def test_checkpointing_changes_no_gradient(adapter):
    """Layers are computed a second time, and the gradients are the same."""
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        made = loaded(adapter(gradient_checkpointing=checkpointing))
        layer = made.llm.network.get_decoder().layers[0]
        passes = []
        layer.mlp.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        made._likelihood([made.encode(draw(seed)) for seed in (0, 1)]).backward()
        assert len(passes) == 1 + checkpointing
        gradients.append(
            {n: p.grad for n, p in made.network.named_parameters() if p.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    assert any(g.abs().sum() > 0 for g in gradients[0].values())
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


@pytest.mark.parametrize("precision", ["4bit", "8bit"])
def test_an_adapter_is_tuned_on_quantised_weights_and_used_on_them(
    wide_llm_folder, tmp_path, precision
):
    """QLoRA: gradients reach the adapter alone, and it is loaded around quantised weights."""
    pytest.importorskip("bitsandbytes")

    def quantised(**options):
        return HuggingFaceLanguageModel(
            str(wide_llm_folder), dtype="float32", device="cpu", quantization=precision, **options
        )

    made = loaded(RankingAdapter(quantised(), str(tmp_path / "unused"), rank=8, lr=0.02))
    optimizer = torch.optim.AdamW([p for p in made.network.parameters() if p.requires_grad], 0.02)
    losses = []
    for _ in range(8):
        loss = made._likelihood([made.encode(draw(seed)) for seed in (0, 1)])
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.5
    made.network.save_pretrained(tmp_path / "adapter")
    made.network.eval()
    letters = [tuple("ABCD")]
    theirs = made.llm.score(["Rank"], letters)[0]
    ours = quantised(adapter=str(tmp_path / "adapter")).score(["Rank"], letters)[0]
    assert ours == pytest.approx(theirs, abs=1e-3)
    assert ours != pytest.approx(quantised().score(["Rank"], letters)[0], abs=1e-3)


def test_likelihood_loss_by_hand(adapter):
    """Mean of -log p over the learnt tokens of both sequences, padding left out."""
    made = loaded(adapter())
    encoded = [made.encode(draw(seed)) for seed in (0, 1)]
    assert len(encoded[0][0]) != len(encoded[1][0])
    expected = []
    with torch.no_grad():
        for ids, learnt in encoded:
            log_probs = made.llm.network(torch.tensor([ids])).logits[0].log_softmax(-1)
            expected += [-log_probs[k - 1, ids[k]].item() for k in range(1, len(ids)) if learnt[k]]
        assert float(made._likelihood(encoded)) == pytest.approx(np.mean(expected), abs=1e-4)


def test_listwise_loss_by_hand(adapter):
    """-log softmax of the target's log-probability among those of all candidates."""
    made = loaded(adapter(listwise_weight=1.0))
    instruction = draw()
    (scores,) = made.llm.score(
        [instruction.prompt], [[f" {title}\n" for title in instruction.candidates]], ["1."]
    )
    expected = -torch.tensor(scores).log_softmax(0)[0]
    with torch.no_grad():
        assert float(made._listwise([instruction])) == pytest.approx(float(expected), abs=1e-3)


def test_gradients_reach_the_adapter_alone(adapter):
    made = loaded(adapter(listwise_weight=0.5, n_layers=1))
    batch = [draw(seed) for seed in (0, 1)]
    loss = made._likelihood([made.encode(i) for i in batch]) + made._listwise(batch)
    loss.backward()
    trained = {name for name, p in made.network.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name and "layers.1." in name for name in trained)
    with_gradient = {
        name for name, p in made.network.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert with_gradient == {
        name for name in trained if "lora_B" in name
    }  # A begins as random, B 0


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_tuning_teaches(adapter, weight):
    """Few instructions, learnt by heart: their titles become likely, their targets come first."""
    seed_everything(0, verbose=False)
    made = loaded(adapter(listwise_weight=weight))
    batch = [draw(seed) for seed in range(4)]
    encoded = [made.encode(instruction) for instruction in batch]
    optimizer = torch.optim.AdamW([p for p in made.network.parameters() if p.requires_grad], 0.02)

    def losses():
        return made._likelihood(encoded), made._listwise(batch)

    before = [loss.item() for loss in losses()]
    for _ in range(40):
        likelihood, listwise = losses()
        optimizer.zero_grad()
        (likelihood + weight * listwise).backward()
        optimizer.step()
    after = [loss.item() for loss in losses()]
    assert after[0] < 0.6 * before[0]
    if weight:
        assert after[1] < 0.2  # ten candidates: ln 10 = 2.3 knows nothing


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
    (first / "tuning.json").write_text(json.dumps(about))
    more = adapter(start=str(first))
    trainer(tmp_path, max_epochs=1, limit_train_batches=1).fit(more, datamodule=data)
    known = json.loads((tmp_path / "adapter/tuning.json").read_text())["left_out"]
    assert known == about["left_out"]


@pytest.mark.parametrize(
    "broken", ['{"data": "custom", ', '{"left_out": ["a"]}', '{"left_out": 3, "data": "custom"}']
)
def test_what_an_adapter_left_out_cannot_be_read(tmp_path, broken):
    (tmp_path / "tuning.json").write_text(broken)
    with pytest.raises(InputError, match=r"tuning.json does not tell whom .*: restore it"):
        n_learnt_from(str(tmp_path), "custom", ["someone"])


@pytest.fixture
def here(tmp_path, monkeypatch, custom_csv, wide_llm_folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    small = {
        "name": "small",
        "model": {
            "init_args": {"llm": {"init_args": {"model": str(wide_llm_folder)}}, "start": None}
        },
        "data": {
            "init_args": {
                "name": "custom",
                "custom": {
                    "interactions": str(custom_csv.interactions),
                    "titles": str(custom_csv.titles),
                },
                "n_train_users": 6,
                "n_validation_users": 6,
                "n_test_users": 6,
            }
        },
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "limit_train_batches": 2,
            "enable_progress_bar": False,
        },
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    return tmp_path


def test_the_papers_alpaca(here):
    """Rankings by title on the overlay's own settings; batches of 8, 16 of them an update."""
    options = ["--config", "conf/llm_tuning/ml-100k.yaml", "--config", "conf/paper/alpaca.yaml"]
    made = main(["fit", *options, "--config", "small.yaml", "--trainer.precision", "32"])
    assert (here / "checkpoints/adapters/small/adapter_model.safetensors").is_file()
    assert made.model.lora.target_modules == {"q_proj", "v_proj"}
    assert made.datamodule.display.show_candidates
    assert made.datamodule.batch_size * made.trainer.accumulate_grad_batches == 128


def test_a_checkpoint_of_something_else(adapter):
    with pytest.raises(InputError, match="not written by RankingAdapter"):
        adapter().on_load_checkpoint({"rpp": {}})


def test_a_catalogue_smaller_than_the_list():
    few = CATALOGUE[:6]
    made = draw_instruction(few[:3], few, {0, 1, 2}, PATTERNS, np.random.default_rng(0),
                            n_candidates=10, display=Display(answer="identifiers"))  # fmt: skip
    assert len(made.candidates) == 4


def test_a_model_in_parts_is_not_tuned(here, capsys):
    options = ["--config", "small.yaml", "--model.llm.device_map", "auto"]
    with pytest.raises(SystemExit):
        run(["fit", "--config", "conf/llm_tuning/ml-1m.yaml", *options])
    assert "a model is tuned on one device: " in capsys.readouterr().err


def test_an_adapter_to_start_from_that_is_not_there(here, capsys):
    options = ["--config", "small.yaml", "--model.start", "checkpoints/adapters/none"]
    with pytest.raises(SystemExit):
        run(["fit", "--config", "conf/llm_tuning/ml-1m.yaml", *options])
    assert "there is no adapter in checkpoints/adapters/none: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (ROOT / "conf/llm_tuning").glob("*.yaml"))
)
def test_every_configuration_runs_and_its_checkpoint_is_small(here, name):
    main(["fit", "--config", f"conf/llm_tuning/{name}.yaml", "--config", "small.yaml"])
    assert (here / "checkpoints/adapters/small/adapter_model.safetensors").is_file()
    assert (here / "checkpoints/adapters/small/tuning.json").is_file()
    checkpoint = torch.load(here / "checkpoints/small/last.ckpt", weights_only=True)
    assert all("lora_" in key for key in checkpoint["state_dict"])
    main(
        ["fit", "--config", f"conf/llm_tuning/{name}.yaml", "--config", "small.yaml",
         "--ckpt_path", "last", "--trainer.max_epochs", "2"]
    )  # fmt: skip
