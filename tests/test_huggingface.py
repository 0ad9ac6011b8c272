"""Hugging Face models: contract, fingerprint, length of the context."""

from __future__ import annotations

import json
import math
import shutil

import pytest
from contracts import LanguageModelContract
from tiny_models import save_llm

from rpp.llms.base import ScriptedLanguageModel
from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.ranker import Ranker
from rpp.types import InputError


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


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("temperature", -0.1, "temperature is -0.1: it must be 0"),
        ("temperature", math.nan, "temperature is nan"),
        ("temperature", math.inf, "temperature is inf"),
        ("top_p", 0.0, "top_p is 0.0: it must be above 0"),
        ("top_p", 1.1, "top_p is 1.1"),
        ("max_new_tokens", 0, "max_new_tokens is 0: it must be at least 1"),
        ("seed", -1, "seed is -1: it must be from 0"),
        ("seed", 2**63, "seed is 9223372036854775808"),
    ],
)
def test_sampling_out_of_range_is_refused(make_llm, make_openai, option, value, message):
    for make in (make_llm, make_openai):
        with pytest.raises(InputError, match=message):
            make(**{option: value})


def test_a_ranker_with_a_negative_seed_is_refused():
    with pytest.raises(InputError, match=r"environment\.seed is -1: it must be 0 or more"):
        Ranker(ScriptedLanguageModel(), seed=-1)


@pytest.mark.parametrize(("option", "value"), [("timeout", 0), ("max_retries", -1)])
def test_settings_of_requests_out_of_range_are_refused(make_openai, option, value):
    with pytest.raises(InputError, match=f"{option} is {value}: it must be at least"):
        make_openai(**{option: value})
