"""Prompts in their template, texts as they are spelt."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from tiny_models import save_llm
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.llms.templates import ALPACA
from rpp.types import InputError


def test_templates(make_llm):
    chat, alpaca, none = (make_llm(template=t) for t in ("chat", "alpaca", "none"))
    assert (
        chat.tokenizer.decode(chat.prompt_tokenizer.encode("Hi", "1."))
        == "<|user|>Hi<|end|><|assistant|>1."
    )
    assert alpaca.tokenizer.decode(alpaca.prompt_tokenizer.encode("Hi", "1.")) == (
        "### Instruction:\nHi\n\n### Response:\n1."
    )
    assert ALPACA.format(prompt="Hi") + "1." == alpaca.tokenizer.decode(
        alpaca.prompt_tokenizer.encode("Hi", "1.")
    )
    assert none.tokenizer.decode(none.prompt_tokenizer.encode("Hi")) == "Hi"
    assert chat.count_tokens("Hi") > none.count_tokens("Hi")


def test_braces_in_a_title_do_not_break_the_template(make_llm):
    llm = make_llm(template="alpaca")
    assert "{0} {x}" in llm.tokenizer.decode(llm.prompt_tokenizer.encode("{0} {x}"))


def test_model_without_chat_template_names_the_remedy(tmp_path):
    save_llm(tmp_path, chat_template=None)
    with pytest.raises(InputError, match="no chat template: set template to alpaca or none"):
        HuggingFaceLanguageModel(str(tmp_path)).generate(["a"])
    assert HuggingFaceLanguageModel(str(tmp_path), template="none", max_new_tokens=2).generate(
        ["a"]
    )


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    """A random model whose tokenizer puts a blank before every text, as LLaMA-2's does."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    vocabulary = ["<unk>", "<s>", "</s>", "\n", *"▁ABHeat1.", "He", "at", "Heat"]
    vocabulary += ["▁Heat", "▁A", "▁B", "▁1", "▁▁"]
    merges = [("▁", "▁"), ("H", "e"), ("a", "t"), ("He", "at"), ("▁", "Heat"), ("▁", "A")]
    merges += [("▁", "B"), ("▁", "1")]
    made = Tokenizer(
        models.BPE({t: k for k, t in enumerate(vocabulary)}, merges, unk_token="<unk>")
    )
    blank = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    made.normalizer = normalizers.Sequence(blank)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)])
    PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, initializer_range=0.3, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
    return HuggingFaceLanguageModel(str(folder), template="none", dtype="float32")


def test_a_continuation_is_scored_as_it_is_spelt_in_the_text(sentencepiece):
    llm = sentencepiece
    head, whole = (
        llm.prompt_tokenizer.encode("A", "1."),
        llm.prompt_tokenizer.encode("A", "1. Heat\n"),
    )
    assert (
        llm.prompt_tokenizer.continuation(" Heat\n") != whole[len(head) :]
    )  # by itself: two blanks
    assert llm.prompt_tokenizer.continuation(" Heat\n", after=".") == whole[len(head) :]
    with torch.no_grad():
        log_probs = llm.network(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    expected = sum(log_probs[k - 1, whole[k]].item() for k in range(len(head), len(whole)))
    assert llm.score(["A"], [[" Heat\n"]], ["1."])[0] == pytest.approx([expected], abs=1e-4)


def test_constrained_lines_are_written_as_they_are_spelt_in_the_text(sentencepiece, monkeypatch):
    written = []
    whole = sentencepiece.decoder._continue

    def watched(ids, new, known, cache):
        written.extend(ids[0].tolist())
        return whole(ids, new, known, cache)

    monkeypatch.setattr(sentencepiece.decoder, "_continue", watched)
    (reply,) = sentencepiece.generate_permutation(["1"], [["A", "B", "Heat", "1"]])
    natural = sentencepiece.prompt_tokenizer.continuation(reply)
    assert len(written) > 2
    assert natural[: len(written)] == written


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('system first') }}", r"cannot be filled \(system first\)"),
        ("{% for %}", "cannot be filled"),
        ("{{ messages[0].content[0].text.x }}", "cannot be filled"),
        ("{{ messages[3]['content'] }}", "cannot be filled|leaves the prompt out"),
        ("<|user|><|assistant|>", "leaves the prompt out"),
    ],
)
def test_a_chat_template_that_fails_is_named(tmp_path, template, message):
    """It was a traceback, and a template that has no place for the prompt was not noticed."""
    save_llm(tmp_path, chat_template=template)
    llm = HuggingFaceLanguageModel(str(tmp_path))
    with pytest.raises(InputError, match=rf"chat template of .*({message}).*: set .*template to"):
        llm.generate(["Rank these films."])


def test_a_chat_template_may_trim_the_prompt(tmp_path):
    save_llm(tmp_path, chat_template="<|user|>{{ messages[0].content | trim }}<|assistant|>")
    tokenizer = HuggingFaceLanguageModel(str(tmp_path)).prompt_tokenizer
    assert tokenizer.render("\n Rank these films.\n") == "<|user|>Rank these films.<|assistant|>"


def test_a_tokenizer_that_ends_nothing_is_named(tiny_llm_folder, tmp_path):
    """Without end-of-text and padding token it was a traceback about ``None``."""
    shutil.copytree(tiny_llm_folder, tmp_path / "copy")
    path = tmp_path / "copy/tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "eos_token": None, "pad_token": None}))
    for name in ("special_tokens_map.json",):
        (tmp_path / "copy" / name).unlink(missing_ok=True)
    with pytest.raises(InputError, match="neither an end-of-text nor a padding token: name one"):
        HuggingFaceLanguageModel(str(tmp_path / "copy")).generate(["a"])
