"""Hugging Face models: contract, fingerprint, length of the context."""

from __future__ import annotations

import json
import shutil

import pytest
from contracts import LanguageModelContract
from tiny_models import save_llm

from rpp.llms.huggingface import HuggingFaceLanguageModel


@pytest.fixture(scope="module")
def sampled(make_llm):
    return make_llm(temperature=0.8, top_p=0.9, seed=3)


@pytest.fixture(scope="module")
def alpaca(make_llm):
    return make_llm(template="alpaca")


class TestGreedy(LanguageModelContract):
    @pytest.fixture
    def llm(self, tiny_llm):
        return tiny_llm


class TestSampled(LanguageModelContract):
    @pytest.fixture
    def llm(self, sampled):
        return sampled


class TestAlpaca(LanguageModelContract):
    @pytest.fixture
    def llm(self, alpaca):
        return alpaca


def test_context_length_is_the_models(tiny_llm):
    assert tiny_llm.context_length == 2048


def test_context_length_needs_no_weights(make_llm):
    llm = make_llm()
    assert llm.context_length == 2048
    assert llm.count_tokens("abc") > 0
    assert "network" not in llm.__dict__


def test_fingerprint_knows_everything_that_changes_a_reply(make_llm, tmp_path):
    base = make_llm()
    assert base.fingerprint == make_llm().fingerprint
    assert make_llm(seed=5, top_p=0.5).fingerprint == base.fingerprint  # greedy: no difference
    assert make_llm(share_prefixes=False).fingerprint == base.fingerprint
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
    assert len({base.fingerprint, *(make_llm(**s).fingerprint for s in settings)}) == 11
    json.loads(base.fingerprint)


def test_fingerprint_knows_the_content_of_a_folder(tiny_llm_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_llm_folder, copy)
    first = HuggingFaceLanguageModel(str(tiny_llm_folder)).fingerprint
    assert HuggingFaceLanguageModel(str(copy)).fingerprint == first
    save_llm(copy, seed=1)  # other weights, same sizes
    assert HuggingFaceLanguageModel(str(copy)).fingerprint != first
