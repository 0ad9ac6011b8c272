"""Weights: device, precision, quantisation, adapters, models in parts."""

from __future__ import annotations

import json
import math
import re
import shutil

import pytest
import torch
from contracts import PROMPTS
from helpers import LETTERS, PEFT
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
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


def tuned_on(folder, name, adapter_folder):
    """The same adapter with another base named."""
    shutil.copytree(adapter_folder[0], folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": name})
    )
    return str(folder)


@PEFT
def test_an_adapter_of_another_base_of_equal_shapes_says_so(
    make_llm, adapter_folder, tiny_llm_folder, tmp_path
):
    """It was loaded without a word."""
    other = make_llm(adapter=tuned_on(tmp_path / "other", "someone/gemma", adapter_folder))
    with pytest.warns(UserWarning, match=r"was tuned on 'someone/gemma', and .* is '.*tiny_llm"):
        _ = other.network
    same = tuned_on(tmp_path / "same", f"someone/{tiny_llm_folder.name.upper()}", adapter_folder)
    _ = make_llm(adapter=same).network  # warnings are errors


@PEFT
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name: name.replace("model.model.", "model.language_model.model."), "8 of its 8"),
        (lambda name: name.replace("q_proj", "o_proj"), "4 of its 8 weights have no place"),
        (lambda name: "" if "layers.1" in name else name, r"0 of its 4 .* and 4 places stay"),
        (lambda name: name.replace("layers.1", "layers.7"), "4 of its 8 weights have no place"),
    ],
)
def test_an_adapter_whose_keys_do_not_match_is_refused(
    make_llm, adapter_folder, tmp_path, change, message
):
    """The base's scores were once told under the adapter's name."""
    shutil.copytree(adapter_folder[0], tmp_path / "a")
    path = tmp_path / "a/adapter_model.safetensors"
    save_file({change(k): v for k, v in load_file(path).items() if change(k)}, path)
    with pytest.raises(InputError, match=rf"the adapter .* does not fit the model: {message}"):
        _ = make_llm(adapter=str(tmp_path / "a")).network


@PEFT
def test_an_adapter_that_is_no_numbers_is_refused(make_llm, adapter_folder, tmp_path):
    shutil.copytree(adapter_folder[0], tmp_path / "a")
    path = tmp_path / "a/adapter_model.safetensors"
    save_file({name: weight * math.nan for name, weight in load_file(path).items()}, path)
    with pytest.raises(InputError, match="holds weights that are not finite, base_model"):
        _ = make_llm(adapter=str(tmp_path / "a")).network


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 538090408\n"


@PEFT
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "adapter"])
def test_a_pointer_in_place_of_a_file_is_named(
    make_llm, adapter_folder, tiny_llm_folder, tmp_path, name
):
    """What a clone without git-lfs leaves was once a traceback about headers."""
    source = adapter_folder[0] if name == "adapter" else tiny_llm_folder
    shutil.copytree(source, tmp_path / "copy")
    name = "adapter_model.safetensors" if name == "adapter" else name
    (tmp_path / "copy" / name).write_bytes(POINTER)
    llm = HuggingFaceLanguageModel(str(tmp_path / "copy"), dtype="float32")
    if name == "adapter_model.safetensors":
        llm = make_llm(adapter=str(tmp_path / "copy"))
    with pytest.raises(InputError, match=rf"{name} is a pointer of git-lfs .*git lfs pull"):
        llm.generate(["a"])


def test_weights_that_are_cut_short_are_named(tiny_llm_folder, tmp_path):
    shutil.copytree(tiny_llm_folder, tmp_path / "copy")
    weights = tmp_path / "copy/model.safetensors"
    for size in (0, 4, 5000):
        weights.write_bytes(weights.read_bytes()[:size] if size else b"")
        with pytest.raises(InputError, match="cannot load the language model") as caught:
            HuggingFaceLanguageModel(str(tmp_path / "copy"), dtype="float32").generate(["a"])
        one_sentence(str(caught.value))
        shutil.copy(tiny_llm_folder / "model.safetensors", weights)
