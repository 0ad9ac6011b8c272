"""The losses of LoRA adapters: what they learn from, by hand, and that they teach something."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import PEFT
from lightning import seed_everything
from tuning_setup import OWN, draw, loaded
from tuning_setup import adapter as adapter

from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.prompts.compose import Display
from rpp.tuning.module import RankingAdapter
from rpp.types import InputError

pytestmark = PEFT


def test_only_titles_are_learnt(adapter):
    made = loaded(adapter())
    instruction = draw()
    ids, learnt = made.encode(instruction)
    text = made.llm.tokenizer.decode([i for i, yes in zip(ids, learnt, strict=True) if yes])
    assert text.replace(" ", "").split() == [
        item.title.replace(" ", "") for item in OWN
    ]  # fmt: skip
    whole = made.llm.tokenizer.decode(ids)
    assert whole == made.llm.prompt_tokenizer.render(instruction.prompt) + instruction.output


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


def test_an_adapter_begins_between_the_frozen_model_and_another(adapter, tmp_path):
    """Scaled by 0 it changes nothing, by 1 it is the other; what it adds grows with the scale."""
    first = loaded(adapter())
    for name, weight in first.network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    first.network.save_pretrained(tmp_path / "first")

    def score(made):
        made.network.eval()
        return made.llm.score(["Rank"], [tuple("ABCD")])[0]

    def started(scale):
        return score(loaded(adapter(start=str(tmp_path / "first"), start_scale=scale)))

    frozen, tuned = score(loaded(adapter())), score(first)
    assert started(0.0) == pytest.approx(frozen, abs=1e-5)
    assert started(1.0) == pytest.approx(tuned, abs=1e-5)
    moved = [np.abs(np.subtract(started(scale), frozen)).max() for scale in (0.1, 0.5, 1.0)]
    assert 0.001 < moved[0] < moved[1] < moved[2]


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


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_listwise_loss_by_hand(adapter, temperature):
    """-log softmax of the target's log-probability among those of all candidates."""
    made = loaded(adapter(listwise_weight=1.0, listwise_temperature=temperature))
    instruction = draw()
    (scores,) = made.llm.score(
        [instruction.prompt], [[f" {title}\n" for title in instruction.candidates]], ["1."]
    )
    expected = -(torch.tensor(scores) / temperature).log_softmax(0)[0]
    with torch.no_grad():
        assert float(made._listwise([instruction])) == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 2.0), (0.5, 3.0)])
def test_the_loss_is_the_weighted_sum(adapter, monkeypatch, weights):
    made = loaded(adapter(likelihood_weight=weights[0], listwise_weight=weights[1]))
    logged = {}
    monkeypatch.setattr(made, "log", lambda name, value, **_: logged.update({name: float(value)}))
    with torch.no_grad():
        loss = float(made.training_step([draw(0), draw(1)], 0))
    parts = dict(zip(("train/loss", "train/listwise"), weights, strict=True))
    assert {name for name in parts if name in logged} == {name for name, w in parts.items() if w}
    assert loss == pytest.approx(sum(w * logged.get(name, 0) for name, w in parts.items()))
    assert loss > 0


def test_a_temperature_is_above_0(adapter):
    with pytest.raises(InputError, match="listwise_temperature is 0: give more than 0"):
        adapter(listwise_temperature=0.0)


@pytest.mark.parametrize("weights", [(0.0, 0.0), (-1.0, 2.0)])
def test_a_loss_needs_a_weight(adapter, weights):
    with pytest.raises(InputError, match="one must be above 0 and none below"):
        adapter(likelihood_weight=weights[0], listwise_weight=weights[1])


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
