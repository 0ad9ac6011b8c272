"""Weights: device, precision, quantisation, adapters, models in parts."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from contracts import PROMPTS
from helpers import LETTERS, PEFT
from peft import LoraConfig, get_peft_model
from tiny_models import save_llm
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.types import InputError


def test_network_is_frozen_and_freed(make_llm):
    llm = make_llm()
    llm.generate(["a"])
    assert not any(p.requires_grad for p in llm.network.parameters())
    assert not llm.network.training
    llm.close()
    assert "network" not in llm.__dict__


@pytest.fixture(scope="module")
def adapter_folder(tiny_llm_folder, tmp_path_factory):
    """A LoRA adapter that changes the model."""
    folder = tmp_path_factory.mktemp("adapter")
    network = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_llm_folder),
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    )
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    network.save_pretrained(folder)
    return folder, network.eval()


@PEFT
def test_adapter_is_applied(make_llm, tiny_llm, adapter_folder):
    folder, network = adapter_folder
    adapted = make_llm(adapter=str(folder))
    (scores,) = adapted.score(["Rank"], [LETTERS])
    with torch.no_grad():
        ids = torch.tensor([adapted.prompt_tokenizer.encode("Rank")])
        log_probs = network(input_ids=ids).logits[0, -1].log_softmax(-1)
    tokens = [adapted.tokenizer.convert_tokens_to_ids(letter) for letter in LETTERS]
    assert scores == pytest.approx(log_probs[tokens].tolist(), abs=1e-4)
    assert scores != pytest.approx(tiny_llm.score(["Rank"], [LETTERS])[0], abs=0.1)
    assert len(adapted.generate(PROMPTS)) == len(PROMPTS)


@PEFT
def test_fingerprint_knows_the_content_of_an_adapter(make_llm, adapter_folder, tmp_path):
    folder, _ = adapter_folder
    shutil.copytree(folder, tmp_path / "a")
    copied = make_llm(adapter=str(tmp_path / "a"))
    assert copied.fingerprint == make_llm(adapter=str(folder)).fingerprint
    weights = tmp_path / "a" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert make_llm(adapter=str(tmp_path / "a")).fingerprint != copied.fingerprint


def one_sentence(message):
    assert "\n" not in message
    assert "Traceback" not in message


def test_missing_model_is_named(tmp_path):
    folder = tmp_path / "no such model"
    llm = HuggingFaceLanguageModel(str(folder))
    with pytest.raises(InputError, match=re.escape(str(folder))) as caught:
        llm.generate(["a"])
    one_sentence(str(caught.value))


def test_folder_without_a_model_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="cannot load the language model") as caught:
        HuggingFaceLanguageModel(str(tmp_path)).generate(["a"])
    one_sentence(str(caught.value))


def test_missing_adapter_is_named(make_llm, tmp_path):
    llm = make_llm(adapter=str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="cannot load the adapter") as caught:
        llm.generate(["a"])
    one_sentence(str(caught.value))


def in_parts(on_disk: str) -> dict[str, str | int]:
    """A map of the tiny model with one part on disk, which is fetched when its turn comes."""
    names = ("embed_tokens", "layers.0", "layers.1", "norm", "rotary_emb")
    return {"lm_head": "cpu", **{f"model.{name}": "cpu" for name in names}, on_disk: "disk"}


@pytest.mark.parametrize(
    "places", ["auto", {"": "cpu"}, in_parts("model.layers.1"), in_parts("model.embed_tokens")]
)
def test_a_model_in_parts_answers_like_a_whole_one(make_llm, places):
    whole = make_llm(device="cpu", dtype="float32")
    parts = make_llm(device="cpu", dtype="float32", device_map=places)
    lines = [LETTERS] * len(PROMPTS)
    assert parts.generate(PROMPTS) == whole.generate(PROMPTS)
    assert parts.generate_permutation(PROMPTS, lines) == whole.generate_permutation(PROMPTS, lines)
    ours, theirs = (torch.tensor(llm.score(PROMPTS, lines)) for llm in (parts, whole))
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert parts.fingerprint == whole.fingerprint
    assert any(weight.is_meta for weight in parts.network.parameters()) == ("disk" in str(places))


@PEFT
def test_an_adapter_on_a_model_that_is_not_all_there(make_llm, adapter_folder):
    folder, _ = adapter_folder
    llm = make_llm(device="cpu", adapter=str(folder), device_map=in_parts("model.layers.1"))
    with pytest.raises(InputError, match=r"the adapter '.*' needs all of '.*' on GPUs"):
        llm.generate(PROMPTS)


@PEFT
def test_an_adapter_of_another_model_is_named(make_llm, tiny_llm_folder, tmp_path):
    wide = save_llm(tmp_path / "wide", width=64)
    base = LlamaForCausalLM.from_pretrained(wide)
    get_peft_model(base, LoraConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path / "adapter")
    llm = make_llm(adapter=str(tmp_path / "adapter"))
    with pytest.raises(InputError, match=r"cannot load the adapter '.*adapter'"):
        _ = llm.network


def test_trainers_device_is_taken_unless_one_is_named(make_llm):
    auto, named = make_llm(), make_llm(device="cpu")
    for llm in (auto, named):
        llm.place(torch.device("meta"))
    assert (auto.device.type, named.device.type) == ("meta", "cpu")


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_precision(make_llm, dtype, expected):
    llm = make_llm(dtype=dtype, device="cpu")
    assert llm.dtype == expected
    assert next(llm.network.parameters()).dtype == expected


@pytest.mark.parametrize("native", [True, False])
def test_automatic_precision_is_what_the_processor_computes(make_llm, monkeypatch, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    llm = make_llm(dtype="auto", device="cpu")
    assert llm.dtype == (torch.bfloat16 if native else torch.float32)
    assert str(llm.dtype) in llm.fingerprint


@pytest.mark.parametrize("precision", ["4bit", "8bit"])
def test_quantised_weights(tmp_path, precision):
    pytest.importorskip("bitsandbytes")
    save_llm(tmp_path, width=64)  # a block of 4-bit weights is 64 wide
    settings = {"max_new_tokens": 4, "device": "cpu", "dtype": "float32"}
    whole = HuggingFaceLanguageModel(str(tmp_path), **settings)
    small = HuggingFaceLanguageModel(str(tmp_path), quantization=precision, **settings)
    assert len(small.generate(PROMPTS[:2])) == 2
    (ours,), (theirs,) = small.score(["Rank"], [LETTERS]), whole.score(["Rank"], [LETTERS])
    assert ours != theirs
    assert torch.corrcoef(torch.tensor([ours, theirs]))[0, 1] > 0.7
