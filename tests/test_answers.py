"""What a chat server sends in place of a plain answer."""

from __future__ import annotations

import json
import math
import warnings

import pytest
from helpers import KEY

from rpp.llms.answers import is_same_model, server_words
from rpp.llms.openai import OpenAILanguageModel
from rpp.types import InputError, LanguageModelError, LanguageModelStop

pytestmark = pytest.mark.usefixtures("no_key", "hasty")


def completion(content="1. this", **message):
    choice = {"index": 0, "finish_reason": "stop", "message": {"content": content, **message}}
    return json.dumps({"choices": [choice], "model": "m"})


@pytest.mark.parametrize(
    ("content", "reply"),
    [
        ([{"type": "text", "text": "1. this"}], "1. this"),
        ([{"type": "text", "text": "1. "}, {"type": "output_text", "text": "this"}], "1. this"),
        (["1. ", {"text": "this"}], "1. this"),
        (
            [
                {"type": "thinking", "thinking": [{"type": "text", "text": "2. that"}]},
                {"type": "reasoning", "text": "3. there"},
                {"type": "text", "text": "1. this"},
            ],
            "1. this",
        ),
    ],
)
def test_text_parts_count_and_thinking_parts_do_not(server, make_openai, content, reply):
    """A list of parts was once parsed as the text of a Python list."""
    server.says = (200, completion(content), "application/json")
    assert make_openai().generate(["p"]) == [reply]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (completion([{"type": "image_url", "image_url": "u"}]), "sent no text: .*image_url"),
        (completion([3]), "sent no text: 3"),
        (completion(7), "sent no text: 7"),
        (completion({"a": 1}), "sent no text"),
        (completion(None, refusal="I must not."), "the model refuses: I must not"),
        (completion([{"type": "refusal", "refusal": "No."}]), "the model refuses: No"),
        (completion(None), "an empty reply"),
        (completion([{"type": "thinking", "thinking": "hm"}]), "an empty reply"),
        ("[]", "a list in place of a chat completion"),
        ("null", "nothing in place of"),
        ("{}", "an answer without choices"),
        ('{"choices": []}', "an answer without choices"),
        ('{"choices": [null]}', "an answer without choices"),
        ('{"choices": [{"message": null}]}', "an answer without a message"),
        ("{", "an answer that is no JSON"),
        ('{"error": {"message": "Add 10 credits", "code": 429}}', "error: Add 10 credits"),
        ('{"error": "out of memory"}', "error: out of memory"),
        ('{"object": "error", "message": "too long"}', "error: too long"),
        ('{"detail": [{"msg": "bad field"}]}', "error: bad field"),
        (
            '{"choices": [{"error": {"message": "Provider failed", "code": 502}}]}',
            "error: Provider failed",
        ),
    ],
)
def test_what_is_no_answer_is_a_failed_call_with_the_servers_words(
    server, make_openai, body, message
):
    """Errors with status 200 were once "an answer that cannot be read (TypeError)"."""
    server.says = (200, body, "application/json")
    (failure,) = make_openai(max_retries=1).generate(["p"])
    assert isinstance(failure, LanguageModelError)
    with pytest.raises(LanguageModelError, match=message):
        raise failure


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (
            "<!doctype html><html><body>Open WebUI</body></html>",
            "text/html",
            r"a web page in place of JSON \(Open WebUI\): base_url must be .* ends with /v1",
        ),
        ("data: {}\n\ndata: [DONE]\n\n", "text/event-stream", r"event stream .*stream: false"),
        ("hello", "text/plain", r"text in place of JSON \(hello\)"),
    ],
)
def test_what_is_no_json_is_named(server, make_openai, body, kind, message):
    server.says = (200, body, kind)
    with pytest.raises(LanguageModelError, match=message):
        raise make_openai(max_retries=0).generate(["p"])[0]


def test_json_under_another_name_is_read(server, make_openai):
    server.says = (200, completion(), "text/plain; charset=utf-8")
    assert make_openai().generate(["p"]) == ["1. this"]


@pytest.mark.parametrize("code", [401, 402, "insufficient_quota"])
def test_an_error_with_200_that_no_prompt_can_mend_ends_the_run(server, make_openai, code):
    server.says = (200, json.dumps({"error": {"message": "no", "code": code}}), "application/json")
    (failure,) = make_openai().generate(["p"])
    assert isinstance(failure, LanguageModelStop)
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [("null", -math.inf), ('"-inf"', -math.inf), ("NaN", -math.inf), ("-Infinity", -math.inf),
     ("-9999.0", -math.inf), ('"-1.5"', -1.5), ("3.0", 0.0), ("[]", -math.inf)],
)  # fmt: skip
def test_a_log_probability_that_is_no_number_is_minus_infinity(
    server, make_openai, value, expected
):
    """JSON knows no infinity, so that servers write null, which was once a traceback."""
    top = f'{{"token": "A", "logprob": {value}}}'
    told = f'{{"content": [{{"token": "A", "top_logprobs": [{top}]}}]}}'
    body = f'{{"choices": [{{"message": {{"content": "A"}}, "logprobs": {told}}}]}}'
    server.says = (200, body, "application/json")
    assert make_openai().score(["p"], [["A", "B"]]) == [[expected, -math.inf]]


@pytest.mark.parametrize("name", ["ALL_PROXY", "HTTP_PROXY"])
@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "socks://127.0.0.1:1", "ftp://x:1"])
def test_a_proxy_that_cannot_be_used_is_named(monkeypatch, name, proxy):
    """It was once a traceback, or "an answer that cannot be read (ValueError)"."""
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv(name, proxy)
    with pytest.raises(InputError, match=r"requests cannot be sent .* proxy .*ALL_PROXY"):
        OpenAILanguageModel("m", "http://127.0.0.1:1/v1").generate(["p"])


@pytest.mark.parametrize("key", ["sk-…", "sk-a\nb", "ключ", "sk-\x00"])
def test_a_key_that_no_header_can_hold_is_named(monkeypatch, key):
    try:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    except ValueError:
        pytest.skip("the environment cannot hold it either")
    with pytest.raises(InputError, match="OPENAI_API_KEY holds a character that no HTTP") as said:
        OpenAILanguageModel("m", "http://127.0.0.1:1/v1")
    assert key not in str(said.value)


def test_a_field_that_cannot_be_written_is_named(server, make_openai):
    llm = make_openai()
    llm.extra = {"seeds": {1, 2}}
    with pytest.raises(InputError, match=r"cannot be written as JSON .*set.* check extra"):
        llm.generate(["p"])


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (404, '{"detail": "Not Found"}', "application/json", "no chat API at base_url http"),
        (404, "404 page not found", "text/plain", "no chat API at base_url http"),
        (404, "", "text/plain", "no chat API at base_url http"),
        (405, '{"detail": "Method Not Allowed"}', "application/json", "usually it ends with /v1"),
        (404, '{"error": {"message": "model m not found"}}', "application/json", "no model 'm'"),
        (402, '{"error": {"message": "Add credits"}}', "application/json", "used up .*Add credits"),
        (400, '{"detail": "context is 128"}', "application/json", "status 400: context is 128"),
    ],
)
def test_the_address_is_told_from_the_model(server, make_openai, status, body, kind, message):
    """An address without /v1 was once "the server knows no model"."""
    server.says = (status, body, kind)
    with pytest.raises(LanguageModelError, match=message):
        raise make_openai().generate(["p"])[0]


def test_the_key_is_in_no_words_of_the_server(server, make_openai, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for status in (200, 400, 404):
        server.says = (status, json.dumps({"error": {"message": f"{KEY} bad"}}), "application/json")
        assert "planted" not in str(make_openai().generate(["p"])[0])


def test_a_server_that_answers_as_another_model_says_so_once(server, make_openai):
    server.says = (200, completion().replace('"m"', '"gemma"'), "application/json")
    llm = make_openai(concurrency=1)
    with pytest.warns(UserWarning, match="answers as model 'gemma', and .* is 'm'"):
        llm.generate(["p"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert llm.generate(["q"]) == ["1. this"]


@pytest.mark.parametrize(
    ("asked", "answered", "same"),
    [
        ("gpt-4.1-mini", "gpt-4.1-mini-2025-04-14", True),
        ("llama3", "llama3:latest", True),
        ("meta-llama/Llama-2-7b", "Llama-2-7b", True),
        ("tiny", "/models/tiny.gguf", True),
        ("m", "M", True),
        ("gpt-4", "gpt-4o", False),
        ("gpt-4.1", "gpt-4.1-mini", False),
        ("qwen3-4b", "gemma-3-1b", False),
    ],
)
def test_names_of_one_model(asked, answered, same):
    assert is_same_model(asked, answered) is same
    assert is_same_model(answered, asked) is same


def test_server_words_by_hand():
    assert server_words({"error": {"message": "a\nb"}}) == "a b"
    assert server_words({"error": {"code": 3}}) == '{"code": 3}'
    assert server_words({"detail": [{"loc": 1}, {"msg": "c"}]}) == "c"
    assert server_words("x" * 301) == "x" * 300 + "..."
    assert server_words({"other": 1}) is None
