"""Hugging Face models, on a random network of two layers made by the test."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from conftest import save_llm
from contracts import OPTIONS, PROMPTS, LanguageModelContract
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from rpp.llms.base import LanguageModel
from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.llms.lines import Lines
from rpp.llms.noise import GumbelNoise
from rpp.llms.plan import plan
from rpp.llms.templates import ALPACA
from rpp.types import InputError, LanguageModelError

LETTERS = tuple("ABCDEFGHIJ")

# peft 0.21 reads an attribute that transformers 5 has renamed
PEFT = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def llm(tiny_llm_folder):
    return HuggingFaceLanguageModel(str(tiny_llm_folder), dtype="float32", max_new_tokens=12)


@pytest.fixture(scope="module")
def make(tiny_llm_folder):
    """Make a language model of the tiny folder with other settings."""

    def make(**options):
        settings = {"dtype": "float32", "max_new_tokens": 12} | options  # exact on any machine
        return HuggingFaceLanguageModel(str(tiny_llm_folder), **settings)

    return make


@pytest.fixture(scope="module")
def sampled(make):
    return make(temperature=0.8, top_p=0.9, seed=3)


@pytest.fixture(scope="module")
def alpaca(make):
    return make(template="alpaca")


class TestGreedy(LanguageModelContract):
    """With the module's fixture ``llm``."""


class TestSampled(LanguageModelContract):
    @pytest.fixture
    def llm(self, sampled):
        return sampled


class TestAlpaca(LanguageModelContract):
    @pytest.fixture
    def llm(self, alpaca):
        return alpaca


def naive_score(llm, head, tail):
    """Sum of log-softmax over the whole sequence, nothing shared and nothing padded."""
    with torch.no_grad():
        logits = llm.network(input_ids=torch.tensor([head + tail])).logits[0].double()
    log_probs = logits.log_softmax(-1)
    return sum(log_probs[len(head) - 1 + k, token].item() for k, token in enumerate(tail))


def test_scores_are_those_of_a_plain_forward_pass(llm):
    prefixes = ["", "1. ", "Red ", "a"]
    rows = llm.score(PROMPTS, OPTIONS, prefixes)
    for prompt, start, texts, row in zip(PROMPTS, prefixes, OPTIONS, rows, strict=True):
        for text, score in zip(texts, row, strict=True):
            tail = llm.tokenizer(text, add_special_tokens=False).input_ids
            head = llm.prompt_tokenizer.encode(prompt, start)
            assert score == pytest.approx(naive_score(llm, head, tail), abs=1e-4)


def test_scores_sum_over_tokens(llm):
    """Several tokens: the chain rule over the continuation's own tokens."""
    ids = llm.tokenizer("Red Harbour", add_special_tokens=False).input_ids
    assert len(ids) > 1
    (whole,) = llm.score(["x"], [["Red Harbour"]])[0]
    head = llm.prompt_tokenizer.encode("x")
    parts = [naive_score(llm, head + ids[:k], [ids[k]]) for k in range(len(ids))]
    assert whole == pytest.approx(sum(parts), abs=1e-4)


def test_small_batches_score_and_write_the_same(llm, make):
    small = make()
    small.place(torch.device("cpu"), memory_gb=1e-9)
    assert small.generate(PROMPTS) == llm.generate(PROMPTS)
    assert small.generate_permutation(PROMPTS, OPTIONS) == llm.generate_permutation(
        PROMPTS, OPTIONS
    )
    for row, other in zip(small.score(PROMPTS, OPTIONS), llm.score(PROMPTS, OPTIONS), strict=True):
        assert row == pytest.approx(other, abs=1e-4)


def test_nothing_cannot_be_scored(llm):
    with pytest.raises(ValueError, match="nothing to score in ''"):
        llm.score(["x"], [["A", ""]])


def test_greedy_takes_the_most_probable_token(llm):
    head = llm.prompt_tokenizer.encode("What next?")
    written = []
    for _ in range(12):
        with torch.no_grad():
            token = int(
                llm.network(input_ids=torch.tensor([head + written])).logits[0, -1].argmax()
            )
        if token == llm.tokenizer.eos_token_id:
            break
        written.append(token)
    expected = llm.tokenizer.decode(written, skip_special_tokens=True)
    assert llm.generate(["What next?"]) == [expected]


def test_a_permutation_is_the_greedy_choice_among_what_is_left(llm):
    """With options of one token: at every line the most probable one that is left."""
    prompts = ["Rank one", "Rank two", "Rank three"]
    expected = []
    for prompt in prompts:
        left, lines = list(LETTERS[:5]), ""
        while left:
            (scores,) = llm.score([prompt], [left], [lines])
            lines += left.pop(scores.index(max(scores))) + "\n"
        expected.append(lines.rstrip("\n"))
    assert llm.generate_permutation(prompts, [LETTERS[:5]] * 3) == expected
    assert len(set(expected)) > 1


def test_the_default_permutation_is_the_best_line_among_what_is_left(llm):
    """The base class scores whole lines, their ends included."""
    (reply,) = LanguageModel.generate_permutation(llm, ["Rank"], [["A", "Red Harbour", "B"]])
    (scores,) = llm.score(["Rank"], [["A\n", "Red Harbour\n", "B\n"]])
    best = ["A", "Red Harbour", "B"][scores.index(max(scores))]
    assert reply.split("\n")[0] == best
    assert sorted(reply.split("\n")) == ["A", "B", "Red Harbour"]


def test_allowed_tokens_by_hand():
    lines = Lines([[1, 9], [1, 2, 9], [3, 9]])
    assert lines.allowed() == [1, 3]
    lines.write(1)
    assert lines.allowed() == [2, 9]
    lines.write(9)
    assert lines.order == [0]
    assert lines.allowed() == [1, 3]
    lines.write(1)
    assert lines.allowed() == [2]
    assert lines.force() == []  # only [3, 9] could follow: the order is known
    assert lines.finished
    assert lines.order == [0, 1, 2]


def test_the_first_line_may_be_spelt_in_another_way():
    lines = Lines([[1, 9], [2, 9]], first=[[7, 1, 9], [8, 2, 9]])
    assert lines.allowed() == [7, 8]
    lines.write(8)
    assert lines.force() == []  # one line is left: the order is known
    assert lines.order == [1, 0]
    three = Lines([[1, 9], [2, 9], [3, 9]], first=[[7, 1, 9], [7, 2, 9], [8, 9]])
    for token in (7, 2, 9):
        three.write(token)
    assert three.allowed() == [1, 3]


def test_what_is_no_choice_is_forced():
    lines = Lines([[5, 6, 1, 9], [5, 6, 2, 9], [7, 8, 9]])
    assert lines.force() == []
    lines.write(5)
    assert lines.force() == [6]
    lines.write(1)
    assert lines.force() == [9]
    assert lines.allowed() == [5, 7]
    alike = Lines([[4, 1, 9], [4, 2, 9]])
    assert alike.force() == [4]
    assert not alike.finished


def test_sampling_depends_on_seed_and_prompt_alone(make):
    llm = make(temperature=1.0, seed=0)
    again, other = make(temperature=1.0, seed=0), make(temperature=1.0, seed=1)
    assert llm.generate(PROMPTS) == again.generate(PROMPTS[::-1])[::-1]
    assert llm.generate(PROMPTS) != other.generate(PROMPTS)
    assert make(temperature=1e-4).generate(PROMPTS) == make().generate(PROMPTS)


def test_noise_samples_from_the_distribution():
    """The argmax after Gumbel noise has the softmax's frequencies."""
    probs = torch.tensor([0.5, 0.3, 0.2])
    noise = GumbelNoise([f"prompt {k}" for k in range(4000)], seed=0)
    draws = noise(None, probs.log().repeat(4000, 1)).argmax(-1)
    counts = Counter(draws.tolist())
    for token, p in enumerate(probs.tolist()):
        assert counts[token] / 4000 == pytest.approx(p, abs=0.03)  # four standard errors


def test_top_p_leaves_out_the_tail(make):
    assert make(temperature=1.0, top_p=1e-6).generate(PROMPTS) == make().generate(PROMPTS)


def test_reply_length_is_bounded(make):
    llm = make(max_new_tokens=3)
    llm.generate(["a"])
    assert 0 < llm.usage.reply_tokens <= 3


def test_templates(make):
    chat, alpaca, none = (make(template=t) for t in ("chat", "alpaca", "none"))
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


def test_braces_in_a_title_do_not_break_the_template(make):
    llm = make(template="alpaca")
    assert "{0} {x}" in llm.tokenizer.decode(llm.prompt_tokenizer.encode("{0} {x}"))


def test_context_length_is_the_models(llm):
    assert llm.context_length == 2048


def test_context_length_needs_no_weights(make):
    llm = make()
    assert llm.context_length == 2048
    assert llm.count_tokens("abc") > 0
    assert "network" not in llm.__dict__


def test_network_is_frozen_and_freed(make):
    llm = make()
    llm.generate(["a"])
    assert not any(p.requires_grad for p in llm.network.parameters())
    assert not llm.network.training
    llm.close()
    assert "network" not in llm.__dict__


def test_fingerprint_knows_everything_that_changes_a_reply(make, tmp_path):
    base = make()
    assert base.fingerprint == make().fingerprint
    assert make(seed=5, top_p=0.5).fingerprint == base.fingerprint  # greedy: no difference
    assert make(share_prefixes=False).fingerprint == base.fingerprint
    settings = [
        {"template": "alpaca"},
        {"dtype": "bfloat16"},
        {"max_new_tokens": 13},
        {"revision": "abc"},
        {"quantization": "8bit"},
        {"adapter": "someone/adapter"},
        {"temperature": 0.2},
        {"temperature": 0.3},
        {"temperature": 0.2, "top_p": 0.9},
        {"temperature": 0.2, "seed": 1},
    ]
    assert len({base.fingerprint, *(make(**s).fingerprint for s in settings)}) == 11
    json.loads(base.fingerprint)


def test_fingerprint_knows_the_content_of_a_folder(tiny_llm_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_llm_folder, copy)
    first = HuggingFaceLanguageModel(str(tiny_llm_folder)).fingerprint
    assert HuggingFaceLanguageModel(str(copy)).fingerprint == first
    save_llm(copy, seed=1)  # other weights, same sizes
    assert HuggingFaceLanguageModel(str(copy)).fingerprint != first


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
def test_adapter_is_applied(make, llm, adapter_folder):
    folder, network = adapter_folder
    adapted = make(adapter=str(folder))
    (scores,) = adapted.score(["Rank"], [LETTERS])
    with torch.no_grad():
        ids = torch.tensor([adapted.prompt_tokenizer.encode("Rank")])
        log_probs = network(input_ids=ids).logits[0, -1].log_softmax(-1)
    tokens = [adapted.tokenizer.convert_tokens_to_ids(letter) for letter in LETTERS]
    assert scores == pytest.approx(log_probs[tokens].tolist(), abs=1e-4)
    assert scores != pytest.approx(llm.score(["Rank"], [LETTERS])[0], abs=0.1)
    assert len(adapted.generate(PROMPTS)) == len(PROMPTS)


@PEFT
def test_fingerprint_knows_the_content_of_an_adapter(make, adapter_folder, tmp_path):
    folder, _ = adapter_folder
    shutil.copytree(folder, tmp_path / "a")
    copied = make(adapter=str(tmp_path / "a"))
    assert copied.fingerprint == make(adapter=str(folder)).fingerprint
    weights = tmp_path / "a" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert make(adapter=str(tmp_path / "a")).fingerprint != copied.fingerprint


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


def test_missing_adapter_is_named(make, tmp_path):
    llm = make(adapter=str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="cannot load the adapter") as caught:
        llm.generate(["a"])
    one_sentence(str(caught.value))


def test_model_without_chat_template_names_the_remedy(tmp_path):
    save_llm(tmp_path, chat_template=None)
    with pytest.raises(InputError, match="no chat template: set template to alpaca or none"):
        HuggingFaceLanguageModel(str(tmp_path)).generate(["a"])
    assert HuggingFaceLanguageModel(str(tmp_path), template="none", max_new_tokens=2).generate(
        ["a"]
    )


def full(*args, **options):
    raise torch.OutOfMemoryError("tried to allocate 8 GiB")


def test_out_of_memory_names_the_remedy(make, monkeypatch):
    llm = make()
    monkeypatch.setattr(LlamaForCausalLM, "get_decoder", lambda self: full)
    for ask in (
        lambda: llm.generate(["a"]),
        lambda: llm.generate_permutation(["a"], [["A", "B"]]),
        lambda: llm.score(["a"], [["A"]]),
    ):
        (failure,) = ask()
        assert isinstance(failure, LanguageModelError)
        assert "use a quantised or smaller model" in str(failure)


def test_a_prompt_without_room_costs_no_other(llm, make, monkeypatch):
    small = make()
    decoder = small.decoder
    prompts = ["a", "words " * 40, "b"]
    longest = len(small.prompt_tokenizer.encode(prompts[1]))
    whole = decoder._pass

    def limited(trees, cache):
        return full() if max(map(len, trees)) >= longest - 1 else whole(trees, cache)

    monkeypatch.setattr(decoder, "_pass", limited)
    replies = small.generate(prompts)
    assert isinstance(replies[1], LanguageModelError)
    assert replies[::2] == llm.generate(prompts[::2])


def test_a_shared_tree_is_no_larger_than_the_memory(make):
    llm = make()
    llm.decoder.pair_cost = 0.0
    prompt_ids = [llm.prompt_tokenizer.encode(prompt) for prompt in grid()]
    for room in (10**9, llm.decoder.n_bytes(2 * max(map(len, prompt_ids)), 1)):
        planned = plan(
            llm.decoder, prompt_ids, [[[]]] * len(prompt_ids), room=0, max_bytes=room, share=True
        )
        widths = [len(tree) for batch in planned for trees in batch.passes for tree in trees]
        assert llm.decoder.n_bytes(max(widths), 1) <= room
        assert sorted(row for batch in planned for row in batch.rows) == [*range(len(prompt_ids))]


def test_a_batch_too_large_for_the_memory_is_halved(llm, make, monkeypatch):
    """The estimate of what fits may be wrong; the answer is the same."""
    small = make()
    decoder, most = small.decoder, 2
    whole = decoder._pass

    def limited(trees, cache):
        return full() if len(trees) > most else whole(trees, cache)

    monkeypatch.setattr(decoder, "_pass", limited)
    assert small.generate(PROMPTS) == llm.generate(PROMPTS)
    assert small.generate_permutation(PROMPTS, OPTIONS) == llm.generate_permutation(
        PROMPTS, OPTIONS
    )
    for row, other in zip(small.score(PROMPTS, OPTIONS), llm.score(PROMPTS, OPTIONS), strict=True):
        assert row == pytest.approx(other, abs=1e-4)


def grid(n_users=3, n_sentences=4):
    """Prompts of a few users that differ at their ends alone."""
    return [
        f"You know films.\n{user} has seen\n1. Red Harbour {user}\n2. Silent River\nRank {k}."
        for user in range(n_users)
        for k in range(n_sentences)
    ]


def test_prompts_of_one_tree_are_parted_where_there_is_no_memory_for_all(llm, make, monkeypatch):
    small = make()
    small.decoder.pair_cost = 0.0  # all prompts that begin alike are one tree
    whole = small.decoder.prefill

    def limited(passes, room, *, last):
        n_texts = sum(len(tree.paths) for trees in passes for tree in trees)
        return full() if n_texts > 2 else whole(passes, room, last=last)

    monkeypatch.setattr(small.decoder, "prefill", limited)
    prompts = grid(1, 7)
    assert small.generate(prompts) == llm.generate(prompts)
    options = [OPTIONS[0]] * len(prompts)
    assert small.generate_permutation(prompts, options) == llm.generate_permutation(
        prompts, options
    )


def test_a_tree_holds_no_more_prompts_than_have_room_to_be_answered(make, monkeypatch):
    small = make(max_new_tokens=50)
    small.decoder.pair_cost = 0.0
    prompts = grid(1, 16)
    longest = max(small.count_tokens(prompt) for prompt in prompts)
    small.place(torch.device("cpu"), small.decoder.n_bytes(longest, 1, 4 * (longest + 50)) / 1e9)
    sizes = []
    whole = small.decoder.prefill

    def watched(passes, room, *, last):
        sizes.append(sum(len(tree.paths) for trees in passes for tree in trees))
        return whole(passes, room, last=last)

    monkeypatch.setattr(small.decoder, "prefill", watched)
    small.generate(prompts)
    assert sum(sizes) == 16
    assert max(sizes) <= 4


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


def test_texts_longer_than_a_sliding_window_are_refused(tiny_llm_folder, tmp_path):
    """Every token of a tree sees all before it: such a layer would be computed wrongly."""
    folder = tmp_path / "gemma"
    shutil.copytree(tiny_llm_folder, folder)
    config = Gemma3TextConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=16,
        initializer_range=0.3, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    Gemma3ForCausalLM(config).save_pretrained(folder)
    llm = HuggingFaceLanguageModel(str(folder), dtype="float32", template="none", max_new_tokens=4)
    short, long = "Hi", PROMPTS[0] * 3
    head = llm.prompt_tokenizer.encode(short)
    with torch.no_grad():
        log_probs = llm.network(torch.tensor([head])).logits[0, -1].double().log_softmax(-1)
    expected = [log_probs[llm.prompt_tokenizer.continuation(each)[0]].item() for each in "AB"]
    assert llm.score([short], [["A", "B"]])[0] == pytest.approx(expected, abs=1e-4)
    for ask in (llm.generate, lambda prompts: llm.score(prompts, [["A", "B"]])):
        with pytest.raises(InputError, match="longer than the 16 that some layers of gemma3"):
            ask([long])
    with pytest.raises(InputError, match="longer than the 16"):  # the reply grows out of it
        llm.generate_permutation([short], [[f"Red Harbour {k} of the north" for k in range(9)]])


def test_memory_that_pytorch_keeps_for_itself_counts_as_free(make, monkeypatch):
    """Else batches of a GPU shrink with every call, since freed blocks go back to PyTorch."""
    llm = make(device="cuda")
    answers = {"mem_get_info": (10, 100), "memory_reserved": 70, "memory_allocated": 20}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, answer=answer: answer)
    assert llm._max_bytes() == int((10 + 70 - 20) * 0.8)


def test_of_several_gpus_the_fullest_counts(make, monkeypatch):
    llm = make(device="cuda", device_map="auto")
    places = [torch.device(name) for name in ("cuda:0", "cuda:1", "cpu", "meta")]
    weights = [SimpleNamespace(device=place) for place in places]
    llm.network = SimpleNamespace(parameters=lambda: weights)
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda device: (30 if device.index == 1 else 90, 100)
    )
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    assert llm._max_bytes() == 24


def in_parts(on_disk: str) -> dict[str, str | int]:
    """A map of the tiny model with one part on disk, which is fetched when its turn comes."""
    names = ("embed_tokens", "layers.0", "layers.1", "norm", "rotary_emb")
    return {"lm_head": "cpu", **{f"model.{name}": "cpu" for name in names}, on_disk: "disk"}


@pytest.mark.parametrize(
    "places", ["auto", {"": "cpu"}, in_parts("model.layers.1"), in_parts("model.embed_tokens")]
)
def test_a_model_in_parts_answers_like_a_whole_one(make, places):
    whole = make(device="cpu", dtype="float32")
    parts = make(device="cpu", dtype="float32", device_map=places)
    lines = [LETTERS] * len(PROMPTS)
    assert parts.generate(PROMPTS) == whole.generate(PROMPTS)
    assert parts.generate_permutation(PROMPTS, lines) == whole.generate_permutation(PROMPTS, lines)
    ours, theirs = (torch.tensor(llm.score(PROMPTS, lines)) for llm in (parts, whole))
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert parts.fingerprint == whole.fingerprint
    assert any(weight.is_meta for weight in parts.network.parameters()) == ("disk" in str(places))


@PEFT
def test_an_adapter_on_a_model_that_is_not_all_there(make, adapter_folder):
    folder, _ = adapter_folder
    llm = make(device="cpu", adapter=str(folder), device_map=in_parts("model.layers.1"))
    with pytest.raises(InputError, match=r"the adapter '.*' needs all of '.*' on GPUs"):
        llm.generate(PROMPTS)


@PEFT
def test_an_adapter_of_another_model_is_named(make, tiny_llm_folder, tmp_path):
    wide = save_llm(tmp_path / "wide", width=64)
    base = LlamaForCausalLM.from_pretrained(wide)
    get_peft_model(base, LoraConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path / "adapter")
    llm = make(adapter=str(tmp_path / "adapter"))
    with pytest.raises(InputError, match=r"cannot load the adapter '.*adapter'"):
        _ = llm.network


def test_shared_beginnings_are_computed_once_and_change_nothing(make, monkeypatch):
    shared, alone = make(), make(share_prefixes=False)
    nodes = {}
    for llm in (shared, alone):
        llm.decoder.pair_cost = 0.0  # on a network this small attention would outweigh the gain
        passed = nodes[llm] = []
        whole = llm.decoder._pass

        def counted(trees, cache, whole=whole, passed=passed):
            passed.extend(len(tree) for tree in trees)
            return whole(trees, cache)

        monkeypatch.setattr(llm.decoder, "_pass", counted)
    prompts = grid()
    options = [LETTERS[:4]] * len(prompts)
    assert shared.generate(prompts) == alone.generate(prompts)
    assert shared.generate_permutation(prompts, options) == alone.generate_permutation(
        prompts, options
    )
    ours, theirs = shared.score(prompts, options), alone.score(prompts, options)
    for row, other in zip(ours, theirs, strict=True):
        assert row == pytest.approx(other, abs=1e-4)
    assert sum(nodes[shared]) < 0.5 * sum(nodes[alone])


def test_constrained_decoding_spends_no_pass_on_what_is_no_choice(make, monkeypatch):
    """Ten letters: nine choices, the first of them from the prompt's own pass."""
    llm = make()
    steps = []
    go_on = llm.decoder._continue

    def counted(ids, *rest):
        steps.append(ids.shape[1])
        return go_on(ids, *rest)

    monkeypatch.setattr(llm.decoder, "_continue", counted)
    llm.generate_permutation(["Rank"], [LETTERS])
    assert steps == [2] * 8  # a letter and its line break at once


def test_trainers_device_is_taken_unless_one_is_named(make):
    auto, named = make(), make(device="cpu")
    for llm in (auto, named):
        llm.place(torch.device("meta"))
    assert (auto.device.type, named.device.type) == ("meta", "cpu")


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_precision(make, dtype, expected):
    llm = make(dtype=dtype, device="cpu")
    assert llm.dtype == expected
    assert next(llm.network.parameters()).dtype == expected


@pytest.mark.parametrize("native", [True, False])
def test_automatic_precision_is_what_the_processor_computes(make, monkeypatch, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    llm = make(dtype="auto", device="cpu")
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
