"""One prompt to an OpenAI-compatible server: key, address, budget, what can go wrong."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

import openai
from openai.types.chat.chat_completion import Choice

from rpp.llms.base import Usage
from rpp.types import InputError, LanguageModelError, LanguageModelStop

AGAIN = (
    "run the same command again, with --ckpt_path last if an epoch was finished; what was answered"
    " is in the cache"
)


@dataclass(frozen=True)
class Budget:
    """What a run may use up.

    Attributes:
        max_total_tokens: Prompt and reply tokens; ``None`` sets no limit.
        max_cost: Price of these tokens, in the currency of the prices; ``None`` sets no limit.
        prompt_price: Price of a million prompt tokens.
        reply_price: Price of a million reply tokens.

    Raises:
        InputError: If there is a limit of the cost and no price.
    """

    max_total_tokens: int | None = None
    max_cost: float | None = None
    prompt_price: float = 0.0
    reply_price: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a limit that could never be reached."""
        if self.max_cost is not None and not self.prompt_price + self.reply_price > 0:
            raise InputError(
                f"max_cost {self.max_cost:g} needs prompt_price and reply_price, the prices of a"
                " million tokens"
            )

    def part(self, n: int) -> Budget:
        """One of ``n`` equal parts."""
        tokens = None if self.max_total_tokens is None else self.max_total_tokens // n
        cost = None if self.max_cost is None else self.max_cost / n
        return replace(self, max_total_tokens=tokens, max_cost=cost)

    def cost(self, usage: Usage) -> float:
        r"""What tokens cost: :math:`(n_p c_p + n_r c_r) / 10^6`."""
        prompts = usage.prompt_tokens * self.prompt_price
        return (prompts + usage.reply_tokens * self.reply_price) / 1e6

    def check(self, usage: Usage) -> None:
        """Stop where the budget is spent.

        Raises:
            LanguageModelStop: If either limit is reached.
        """
        tokens = usage.prompt_tokens + usage.reply_tokens
        if self.max_total_tokens is not None and tokens >= self.max_total_tokens:
            limit = f"{self.max_total_tokens} tokens is spent: raise max_total_tokens"
        elif self.max_cost is not None and self.cost(usage) >= self.max_cost:
            limit = f"{self.max_cost:g} is spent after {tokens} tokens: raise max_cost"
        else:
            return
        raise LanguageModelStop(f"the budget of {limit} in environment.llm.init_args and {AGAIN}")


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
        self._counting = Lock()
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
        return openai.OpenAI(
            api_key=self._key or "none",
            base_url=self.base_url,
            timeout=openai.Timeout(self.timeout, connect=min(self.timeout, 10.0)),
            max_retries=self.max_retries,
        )

    def close(self) -> None:
        """Close the connections."""
        if "_client" in self.__dict__:
            self.__dict__.pop("_client").close()

    def ask(self, prompt: str, max_tokens: int, extra: Mapping[str, Any], **options: Any) -> Choice:
        """The server's answer: a text that is not empty, or log-probabilities.

        Args:
            prompt: The user's message.
            max_tokens: Longest reply.
            extra: Fields of the request that OpenAI does not know.
            options: Those it knows; ``None`` leaves one out.

        Raises:
            LanguageModelError: If there is none after all repetitions.
            LanguageModelStop: If none is to be expected for any other prompt either.
        """
        # OpenAI's newer models refuse the name that every other server knows
        limit = "max_completion_tokens" if self._is_openai else "max_tokens"
        given = {name: value for name, value in options.items() if value is not None}
        problem = ""
        for _ in range(self.max_retries + 1):
            self.budget.check(self.usage)
            try:
                answer = self._client.chat.completions.create(
                    model=self.model,
                    messages=[{"role": "user", "content": prompt}],
                    extra_body={limit: max_tokens, **extra},
                    **given,
                )
                choice: Choice = answer.choices[0]
                text = choice.message.content
            except openai.APIStatusError as error:
                raise self._refusal(error) from None
            except openai.APIConnectionError as error:
                raise self._lost(error) from None
            except (openai.OpenAIError, ValueError, AttributeError, LookupError, TypeError) as bad:
                problem = f"an answer that cannot be read ({type(bad).__name__})"
                continue
            used = answer.usage
            with self._counting:
                self._n_lost = 0
                # some servers do not count: about four letters a token, then
                self.usage.prompt_tokens += (used and used.prompt_tokens) or len(prompt) // 4 + 1
                self.usage.reply_tokens += (used and used.completion_tokens) or len(text or "") // 4
            if text or choice.logprobs is not None:
                return choice
            if choice.finish_reason == "length":
                raise LanguageModelError(
                    f"the model spent its {max_tokens} tokens before it wrote a word, as models do"
                    " that think first: raise max_new_tokens in environment.llm.init_args, or"
                    " switch thinking off by extra, as conf/llm/server.yaml shows"
                )
            problem = f"an empty reply (finish reason {choice.finish_reason!r})"
        raise LanguageModelError(f"the server sent {problem}")

    def _lost(self, error: openai.APIConnectionError) -> LanguageModelError:
        slow = isinstance(error, openai.APITimeoutError)
        what = "does not answer in time" if slow else "cannot be reached"
        with self._counting:
            self._n_lost += 1
            n_lost = self._n_lost
        if n_lost <= self.patience:
            return LanguageModelError(f"the server {what}")
        return LanguageModelStop(
            f"the server {what}, {n_lost} prompts in a row: once it is back, {AGAIN}"
        )

    def _refusal(self, error: openai.APIStatusError) -> LanguageModelError:
        said = error.body.get("message") if isinstance(error.body, dict) else None
        status = f"status {error.status_code}"
        if said:
            status += f": {without_key(str(said), self._key)[:300]}"
        if error.status_code in (401, 403):
            refused = "refused the key in" if self._key else "asks for a key in the environment as"
            return LanguageModelStop(f"the server {refused} {self.key_variable} ({status})")
        if error.status_code == 404:
            return LanguageModelStop(f"the server knows no model {self.model!r} ({status})")
        if error.code == "insufficient_quota":
            return LanguageModelStop(f"the account's quota is used up ({status})")
        return LanguageModelError(f"the server answered with {status}")


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
