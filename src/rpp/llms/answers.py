"""What a chat server sends: text, log-probabilities, or words in place of an answer."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openai import BaseModel

from rpp.types import LanguageModelError

THINKING = ("thinking", "reasoning", "redacted_thinking", "reasoning_content")
"""Types of the parts of a content in which a model reasons."""


class UnreadableAnswerError(ValueError):
    """What a server sent is no chat completion, which asking again may mend."""


class ServerError(ValueError):
    """A server's error that came with a status of success.

    Attributes:
        code: The code it names, if any.
    """

    def __init__(self, words: str, code: object) -> None:
        super().__init__(words)
        self.code = code


@dataclass(frozen=True)
class Answer:
    """One answer of a chat server.

    Attributes:
        text: The reply, without parts in which the model reasons.
        first_tokens: The most probable first tokens and their log-probabilities; ``None``: not
            told.
        finish_reason: Why the reply ended.
        model: As what the server answers.
        prompt_tokens: Tokens read; 0 if not told.
        reply_tokens: Tokens written; 0 if not told.
    """

    text: str
    first_tokens: list[tuple[str, float]] | None
    finish_reason: str
    model: str
    prompt_tokens: int
    reply_tokens: int


def read_answer(sent: object) -> Answer:
    """Read what a server sent with a status of success.

    Args:
        sent: A chat completion as ``openai`` hands it over, or the text of anything else.

    Raises:
        UnreadableAnswerError: If it is no chat completion.
        ServerError: If it is an error.
        LanguageModelError: If it can be read and is no answer, and so will the next one be.
    """
    body = _parsed(sent) if isinstance(sent, str) else sent
    if isinstance(body, BaseModel):
        body = body.to_dict(mode="json", warnings=False)
    if not isinstance(body, Mapping):
        raise UnreadableAnswerError(f"{_kind(body)} in place of a chat completion")
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        _raise_error(body)
        raise UnreadableAnswerError("an answer without choices")
    _raise_error(choices[0])
    message = choices[0].get("message")
    if not isinstance(message, Mapping):
        raise UnreadableAnswerError("an answer without a message")
    used = body.get("usage")
    used = used if isinstance(used, Mapping) else {}
    return Answer(
        _text(message),
        _first_tokens(choices[0].get("logprobs")),
        str(choices[0].get("finish_reason")),
        str(body.get("model") or ""),
        _count(used.get("prompt_tokens")),
        _count(used.get("completion_tokens")),
    )


def _parsed(sent: str) -> object:
    """What came as text: JSON under another content type, or something else altogether."""
    try:
        return json.loads(sent)
    except ValueError:
        pass
    if re.match(r"\s*(data|event|id|retry)?:", sent) and "data:" in sent:
        raise LanguageModelError(
            "the server sent an event stream in place of JSON: set extra: {stream: false} in"
            " environment.llm.init_args, or switch streaming off at the server"
        )
    if re.search(r"<(!doctype )?html", sent, re.IGNORECASE):
        page = excerpt(re.sub("<[^>]*>", " ", sent))
        raise LanguageModelError(
            f"the server sent a web page in place of JSON ({page}):"
            " base_url must be the address of its API, which usually ends with /v1"
        )
    raise UnreadableAnswerError(f"text in place of JSON ({excerpt(sent)})")


def _raise_error(body: Mapping[str, Any]) -> None:
    words = server_words(body)
    if words is not None:
        error = body.get("error")
        raise ServerError(words, error.get("code") if isinstance(error, Mapping) else None)


def server_words(body: object) -> str | None:
    """The server's own words on what went wrong, in any of the usual places."""
    if isinstance(body, str):
        return excerpt(body) or None
    if isinstance(body, list):
        return next(filter(None, map(server_words, body)), None)
    if not isinstance(body, Mapping):
        return None
    for name in ("error", "message", "detail", "msg", "error_msg"):
        if name in body and (words := server_words(body[name])):
            return words
    return excerpt(json.dumps(body["error"])) if body.get("error") else None


def excerpt(text: str) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:300]}..."


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if content is None and (refusal := message.get("refusal")):
        raise LanguageModelError(f"the model refuses: {excerpt(str(refusal))}")
    parts = content if isinstance(content, list) else [content or ""]
    return "".join(map(_part, parts))


def _part(part: object) -> str:
    """The text of a part of a content; nothing where the model reasons."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and kind in THINKING:
        return ""
    if isinstance(part, Mapping) and kind in ("text", "output_text", None):
        text = part.get("text")
        if isinstance(text, str):
            return text
    if isinstance(part, Mapping) and kind == "refusal":
        raise LanguageModelError(f"the model refuses: {excerpt(str(part.get('refusal')))}")
    raise LanguageModelError(f"the server sent no text: {excerpt(json.dumps(part))}")


def _first_tokens(logprobs: object) -> list[tuple[str, float]] | None:
    """The first tokens; empty where the reply ended at once, ``None`` where nothing is told."""
    content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    if not isinstance(content, list):
        return None
    if not content:
        return []
    top = content[0].get("top_logprobs") if isinstance(content[0], Mapping) else None
    told = [each for each in top or [] if isinstance(each, Mapping)]
    return [(str(each.get("token")), _log_prob(each.get("logprob"))) for each in told] or None


def _log_prob(value: object) -> float:
    """A logarithm of at most 0; what is no number is minus infinity, as JSON cannot write it."""
    try:
        number = float(value)  # type: ignore[arg-type]  # what is no number raises
    except (TypeError, ValueError):
        return -math.inf
    return -math.inf if math.isnan(number) else min(number, 0.0)


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _kind(body: object) -> str:
    return "nothing" if body is None else f"a {type(body).__name__}"


_SNAPSHOT = re.compile(r"([-@:](latest|free|\d[\d-]*))*(\.gguf)?")


def is_same_model(asked: str, answered: str) -> bool:
    """Whether two names are of one model: without folders, dates of snapshots and ``latest``."""
    names = sorted((name.rpartition("/")[2].casefold() for name in (asked, answered)), key=len)
    return names[1].startswith(names[0]) and bool(_SNAPSHOT.fullmatch(names[1][len(names[0]) :]))
