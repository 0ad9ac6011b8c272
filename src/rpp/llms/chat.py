"""One prompt to an OpenAI-compatible server: key, address, budget, what can go wrong."""

from __future__ import annotations

import json
import os
import random
import re
import warnings
from collections.abc import Mapping
from functools import cached_property
from threading import Lock
from time import sleep
from typing import Any
from urllib.parse import urlsplit

import openai

from rpp.llms.answers import (
    Answer,
    ServerError,
    UnreadableAnswerError,
    is_same_model,
    read_answer,
    server_words,
)
from rpp.llms.base import Usage, first_line
from rpp.llms.budget import AGAIN, Budget
from rpp.types import InputError, LanguageModelError, LanguageModelStop

PAUSE = 0.25
"""Seconds before the first repetition of a request whose answer was of no use."""

PASSING = ("408", "409", "425", "429", "500", "502", "503", "504", "rate_limit_exceeded")
"""Codes of errors that may be gone when the request is repeated."""

_NO_SUCH_PATH = re.compile(r"not found|not allowed|cannot post|no route|no such", re.IGNORECASE)


class ChatClient:
    """Asks a chat model for one answer at a time; threads may share it.

    Timeouts, lost connections and status 429 and 5xx are repeated by ``openai``'s client, with
    growing pauses of random length or after as many seconds as ``Retry-After`` says.

    Args:
        model: Name of the model as the server knows it.
        base_url: Address of the server; ``None`` is OpenAI.
        key_variable: Name of the environment variable that holds the key.
        timeout: Seconds until a request is given up.
        max_retries: Repetitions, also after an answer that is empty or cannot be read.
        patience: Prompts in a row for which there was no connection, after which the server is
            taken to be gone.
        budget: What may be used up.

    Raises:
        InputError: If OpenAI itself is to be asked without a key, or the key, or anything that
            may be one, stands where it would be written down.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None,
        key_variable: str,
        timeout: float,
        max_retries: int,
        patience: int,
        budget: Budget,
    ) -> None:
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", key_variable):
            raise InputError(
                "key_variable must be the name of an environment variable in capitals, such as"
                " OPENAI_API_KEY: the key itself belongs into that variable"
            )
        self.model = model
        self.base_url = base_url
        self.key_variable = key_variable
        self.timeout = timeout
        self.max_retries = max_retries
        self.patience = patience
        self.budget = budget
        self.usage = Usage()
        self._n_lost = 0
        self._told_model = False
        self._counting = Lock()
        if self._key is not None and not (self._key.isascii() and self._key.isprintable()):
            raise InputError(
                f"the key in the environment variable {key_variable} holds a character that no"
                " HTTP header can: copy it anew, without quotes, line breaks or an ellipsis"
            )
        if base_url is None and self._key is None:
            raise InputError(
                f"the environment variable {key_variable} is not set: put your OpenAI key there,"
                " or name a server of your own in environment.llm.init_args.base_url"
            )
        if base_url is not None and not _harmless(base_url, self._key):
            raise InputError(
                "base_url must be of the form http://HOST:PORT/v1, without user name, password,"
                f" key or query, since it is written down: the key belongs into {key_variable}"
            )

    @property
    def _key(self) -> str | None:
        return os.environ.get(self.key_variable, "").strip() or None

    @property
    def _is_openai(self) -> bool:
        host = "api.openai.com" if self.base_url is None else urlsplit(self.base_url).hostname or ""
        return host == "api.openai.com" or host.endswith(".openai.azure.com")

    @cached_property
    def _client(self) -> openai.OpenAI:
        try:
            return openai.OpenAI(
                api_key=self._key or "none",
                base_url=self.base_url,
                timeout=openai.Timeout(self.timeout, connect=min(self.timeout, 10.0)),
                max_retries=self.max_retries,
            )
        except Exception as error:  # of the HTTP library, which tells them apart by no class
            raise InputError(
                f"requests cannot be sent ({without_key(first_line(error), self._key)}): check the"
                " proxy and the certificates that the environment names (ALL_PROXY, HTTPS_PROXY,"
                " HTTP_PROXY, NO_PROXY, SSL_CERT_FILE)"
            ) from None

    def close(self) -> None:
        """Close the connections."""
        if "_client" in self.__dict__:
            self.__dict__.pop("_client").close()

    def ask(self, prompt: str, max_tokens: int, extra: Mapping[str, Any], **options: Any) -> Answer:
        """The server's answer: a text that is not empty, or log-probabilities.

        Args:
            prompt: The user's message.
            max_tokens: Longest reply.
            extra: Fields of the request that OpenAI does not know.
            options: Those it knows; ``None`` leaves one out.

        Raises:
            LanguageModelError: If there is none after all repetitions.
            LanguageModelStop: If none is to be expected for any other prompt either.
            InputError: If the request itself cannot be sent.
        """
        problem = ""
        for attempt in range(self.max_retries + 1):
            if attempt:
                sleep(PAUSE * min(2**attempt, 16) * random.uniform(0.5, 1.0))
            self.budget.check(self.usage)
            try:
                answer = read_answer(self._send(prompt, max_tokens, extra, options))
            except UnreadableAnswerError as error:
                problem = f"the server sent {error}"
                continue
            except ServerError as error:
                problem = self._passing(error)
                continue
            self._count(prompt, answer)
            if answer.text or answer.first_tokens is not None:
                return answer
            if answer.finish_reason == "length":
                raise LanguageModelError(
                    f"the model spent its {max_tokens} tokens before it wrote a word, as models do"
                    " that think first: raise max_new_tokens in environment.llm.init_args, or"
                    " switch thinking off by extra, as conf/llm/server.yaml shows"
                )
            problem = f"the server sent an empty reply (finish reason {answer.finish_reason!r})"
        raise LanguageModelError(problem)

    def _send(
        self, prompt: str, max_tokens: int, extra: Mapping[str, Any], options: Mapping[str, Any]
    ) -> object:
        """Send a request; what comes back with a status of success is still to be read."""
        # OpenAI's newer models refuse the name that every other server knows
        limit = "max_completion_tokens" if self._is_openai else "max_tokens"
        given = {name: value for name, value in options.items() if value is not None}
        create = self._client.chat.completions.create
        try:
            return create(
                model=self.model,
                messages=[{"role": "user", "content": prompt}],
                extra_body={limit: max_tokens, **extra},
                **given,
            )
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        except openai.APIConnectionError as error:
            raise self._lost(error) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UnreadableAnswerError("an answer that is no JSON") from error
        except (TypeError, UnicodeEncodeError) as error:
            raise InputError(
                f"a request cannot be written as JSON ({first_line(error)}): check extra in"
                " environment.llm.init_args"
            ) from error

    def _count(self, prompt: str, answer: Answer) -> None:
        """Count tokens and say once if another model answers."""
        with self._counting:
            self._n_lost = 0
            # some servers do not count: about four letters a token, then
            self.usage.prompt_tokens += answer.prompt_tokens or len(prompt) // 4 + 1
            self.usage.reply_tokens += answer.reply_tokens or len(answer.text) // 4
            if not answer.model or is_same_model(self.model, answer.model) or self._told_model:
                return
            self._told_model = True
        warnings.warn(
            f"the server answers as model {answer.model!r}, and environment.llm.init_args.model is"
            f" {self.model!r}: the replies are kept under the latter",
            stacklevel=2,
        )

    def _passing(self, error: ServerError) -> str:
        """Words of an error that came with a status of success, if asking again may help.

        Raises:
            LanguageModelError: If it may not.
        """
        words = without_key(str(error), self._key)
        said = f"the server answered with an error: {words}"
        if str(error.code) in ("401", "402", "403", "invalid_api_key", "insufficient_quota"):
            raise LanguageModelStop(said)
        if str(error.code) not in PASSING:
            raise LanguageModelError(said)
        return said

    def _lost(self, error: openai.APIConnectionError) -> LanguageModelError:
        cause = first_line(error.__cause__ or error)
        reason = "" if isinstance(error, openai.APITimeoutError) else f" ({cause})"
        slow = isinstance(error, openai.APITimeoutError)
        what = "does not answer in time" if slow else f"cannot be reached{reason}"
        with self._counting:
            self._n_lost += 1
            n_lost = self._n_lost
        if n_lost <= self.patience:
            return LanguageModelError(f"the server {what}")
        return LanguageModelStop(
            f"the server {what}, {n_lost} prompts in a row: once it is back, {AGAIN}"
        )

    def _refusal(self, error: openai.APIStatusError) -> LanguageModelError:
        said = server_words(error.body) or ""
        status = f"status {error.status_code}"
        if said:
            status += f": {without_key(said, self._key)}"
        if error.status_code in (401, 403):
            refused = "refused the key in" if self._key else "asks for a key in the environment as"
            return LanguageModelStop(f"the server {refused} {self.key_variable} ({status})")
        if error.status_code in (404, 405):
            return LanguageModelStop(f"{self._nothing_there(said)} ({status})")
        if error.code == "insufficient_quota" or error.status_code == 402:
            return LanguageModelStop(f"the account's quota is used up ({status})")
        return LanguageModelError(f"the server answered with {status}")

    def _nothing_there(self, said: str) -> str:
        """What is not found: the model, or anything at all at the address."""
        if "model" in said.casefold() or (said and not _NO_SUCH_PATH.search(said)):
            return f"the server knows no model {self.model!r}"
        return (
            f"there is no chat API at base_url {self.base_url}: give it without /chat/completions,"
            " usually it ends with /v1"
        )


def without_key(text: str, key: str | None) -> str:
    """Somebody else's words without those that share six characters in a row with the key."""
    if key is None:
        return text
    key = key.casefold()
    parts = {key[start : start + 6] for start in range(max(1, len(key) - 5))}
    return " ".join(
        "***" if any(part in word.casefold() for part in parts) else word for word in text.split()
    )


def _harmless(url: str, key: str | None) -> bool:
    """Whether an address is one, and has no part that is made for secrets."""
    try:
        parts = urlsplit(url)
        named = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False
    secret = "@" in parts.netloc or "?" in url or "#" in url or (key is not None and key in url)
    return named and not secret
