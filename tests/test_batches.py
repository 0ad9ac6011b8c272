"""Batches and trees of prompts: what fits the memory, and that they change nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from contracts import OPTIONS, PROMPTS
from helpers import LETTERS
from transformers import (
    LlamaForCausalLM,
)

from rpp.llms.plan import plan
from rpp.llms.tree import Tree
from rpp.types import LanguageModelError


def test_small_batches_score_and_write_the_same(tiny_llm, make_llm):
    small = make_llm()
    small.place(torch.device("cpu"), memory_gb=1e-9)
    assert small.generate(PROMPTS) == tiny_llm.generate(PROMPTS)
    assert small.generate_permutation(PROMPTS, OPTIONS) == tiny_llm.generate_permutation(
        PROMPTS, OPTIONS
    )
    for row, other in zip(
        small.score(PROMPTS, OPTIONS), tiny_llm.score(PROMPTS, OPTIONS), strict=True
    ):
        assert row == pytest.approx(other, abs=1e-4)


def full(*args, **options):
    raise torch.OutOfMemoryError("tried to allocate 8 GiB")


def test_out_of_memory_names_the_remedy(make_llm, monkeypatch):
    llm = make_llm()
    monkeypatch.setattr(LlamaForCausalLM, "get_decoder", lambda self: full)
    for ask in (
        lambda: llm.generate(["a"]),
        lambda: llm.generate_permutation(["a"], [["A", "B"]]),
        lambda: llm.score(["a"], [["A"]]),
    ):
        (failure,) = ask()
        assert isinstance(failure, LanguageModelError)
        assert "use a quantised or smaller model" in str(failure)


def test_a_prompt_without_room_costs_no_other(tiny_llm, make_llm, monkeypatch):
    small = make_llm()
    decoder = small.decoder
    prompts = ["a", "words " * 40, "b"]
    longest = len(small.prompt_tokenizer.encode(prompts[1]))
    whole = decoder._pass

    def limited(trees, cache):
        return full() if max(map(len, trees)) >= longest - 1 else whole(trees, cache)

    monkeypatch.setattr(decoder, "_pass", limited)
    replies = small.generate(prompts)
    assert isinstance(replies[1], LanguageModelError)
    assert replies[::2] == tiny_llm.generate(prompts[::2])


def test_a_shared_tree_is_no_larger_than_the_memory(make_llm):
    llm = make_llm()
    llm.decoder.pair_cost = 0.0
    prompt_ids = [llm.prompt_tokenizer.encode(prompt) for prompt in grid()]
    for room in (10**9, llm.decoder.n_bytes(2 * max(map(len, prompt_ids)), 1)):
        planned = plan(
            llm.decoder, prompt_ids, [[[]]] * len(prompt_ids), room=0, max_bytes=room, share=True
        )
        widths = [len(tree) for batch in planned for trees in batch.passes for tree in trees]
        assert llm.decoder.n_bytes(max(widths), 1) <= room
        assert sorted(row for batch in planned for row in batch.rows) == [*range(len(prompt_ids))]


@pytest.mark.parametrize(("in_blocks", "n_passes"), [(True, 1), (False, 2)])
def test_padding_counts_only_where_there_is_some(make_llm, in_blocks, n_passes):
    """2,000 + 20 x 100 tokens are one pass of a CPU; padded to 2,000 each they would be 42,000."""
    decoder = make_llm().decoder
    decoder.in_blocks = in_blocks
    texts = [[1] * 2000, *([2] * 100 for _ in range(20))]
    planned = plan(decoder, texts, [[[]]] * 21, room=0, max_bytes=10**9, share=False)
    assert sum(len(batch.passes) for batch in planned) == n_passes


def test_a_batch_too_large_for_the_memory_is_halved(tiny_llm, make_llm, monkeypatch):
    """The estimate of what fits may be wrong; the answer is the same."""
    small = make_llm()
    decoder, most = small.decoder, 2
    whole = decoder._pass

    def limited(trees, cache):
        return full() if len(trees) > most else whole(trees, cache)

    monkeypatch.setattr(decoder, "_pass", limited)
    assert small.generate(PROMPTS) == tiny_llm.generate(PROMPTS)
    assert small.generate_permutation(PROMPTS, OPTIONS) == tiny_llm.generate_permutation(
        PROMPTS, OPTIONS
    )
    for row, other in zip(
        small.score(PROMPTS, OPTIONS), tiny_llm.score(PROMPTS, OPTIONS), strict=True
    ):
        assert row == pytest.approx(other, abs=1e-4)


def grid(n_users=3, n_sentences=4):
    """Prompts of a few users that differ at their ends alone."""
    return [
        f"You know films.\n{user} has seen\n1. Red Harbour {user}\n2. Silent River\nRank {k}."
        for user in range(n_users)
        for k in range(n_sentences)
    ]


def test_prompts_of_one_tree_are_parted_where_there_is_no_memory_for_all(
    tiny_llm, make_llm, monkeypatch
):
    small = make_llm()
    small.decoder.pair_cost = 0.0  # all prompts that begin alike are one tree
    whole = small.decoder.prefill

    def limited(passes, room, *, last):
        n_texts = sum(len(tree.paths) for trees in passes for tree in trees)
        return full() if n_texts > 2 else whole(passes, room, last=last)

    monkeypatch.setattr(small.decoder, "prefill", limited)
    prompts = grid(1, 7)
    assert small.generate(prompts) == tiny_llm.generate(prompts)
    options = [OPTIONS[0]] * len(prompts)
    assert small.generate_permutation(prompts, options) == tiny_llm.generate_permutation(
        prompts, options
    )


def test_a_tree_holds_no_more_prompts_than_have_room_to_be_answered(make_llm, monkeypatch):
    small = make_llm(max_new_tokens=50)
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


def test_memory_that_pytorch_keeps_for_itself_counts_as_free(make_llm, monkeypatch):
    """Else batches of a GPU shrink with every call, since freed blocks go back to PyTorch."""
    llm = make_llm(device="cuda")
    answers = {"mem_get_info": (10, 100), "memory_reserved": 70, "memory_allocated": 20}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, answer=answer: answer)
    assert llm._max_bytes() == int((10 + 70 - 20) * 0.8)


def test_of_several_gpus_the_fullest_counts(make_llm, monkeypatch):
    llm = make_llm(device="cuda", device_map="auto")
    places = [torch.device(name) for name in ("cuda:0", "cuda:1", "cpu", "meta")]
    weights = [SimpleNamespace(device=place) for place in places]
    llm.network = SimpleNamespace(parameters=lambda: weights)
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda device: (30 if device.index == 1 else 90, 100)
    )
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    assert llm._max_bytes() == 24


def test_causal_attention_of_texts_is_that_of_their_mask(make_llm, monkeypatch):
    llm = make_llm(share_prefixes=False)
    letters = [LETTERS[:4]] * len(PROMPTS)

    def answers():
        return llm.generate(PROMPTS), llm.generate_permutation(PROMPTS, letters)

    replies, scores = answers(), llm.score(PROMPTS, letters)
    monkeypatch.setattr(Tree, "is_text", False)
    assert answers() == replies
    for row, other in zip(llm.score(PROMPTS, letters), scores, strict=True):
        assert row == pytest.approx(other, abs=1e-4)


def test_shared_beginnings_are_computed_once_and_change_nothing(make_llm, monkeypatch):
    shared, alone = make_llm(), make_llm(share_prefixes=False)
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
