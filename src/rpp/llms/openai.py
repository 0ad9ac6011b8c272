"""Language models behind an OpenAI-compatible server: ChatGPT, vLLM, SGLang, llama.cpp."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from threading import Lock

import openai

from rpp.llms.base import LanguageModel, LanguageModelError
from rpp.types import InputError


class OpenAILanguageModel(LanguageModel):
    """A chat model asked over HTTP; retries, timeouts and back-off are the client's own.

    The key comes from the environment and is written nowhere.

    Args:
        model: Name of the model as the server knows it.
        base_url: Address of the server, such as ``http://localhost:8000/v1``; ``null`` is OpenAI.
        key_variable: Environment variable that holds the key; servers without one need none.
        temperature: The paper uses 0.2.
        top_p: Probability mass sampled from.
        max_new_tokens: Longest reply.
        seed: Sent along; servers honour it as far as they can.
        concurrency: Requests under way at once.
        timeout: Seconds until a request is given up and repeated.
        max_retries: Repetitions after a timeout, a lost connection, or status 429 or 5xx.
        max_total_tokens: Prompt and reply tokens of this run after which no further request is
            sent; ``null`` sets no limit.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        temperature: float = 0.2,
        top_p: float = 1.0,
        max_new_tokens: int = 400,
        seed: int = 0,
        concurrency: int = 8,
        timeout: float = 60.0,
        max_retries: int = 5,
        max_total_tokens: int | None = None,
    ) -> None:
        super().__init__()
        self.model_name = model
        self.base_url = base_url
        self.key_variable = key_variable
        self.temperature = temperature
        self.top_p = top_p
        self.max_new_tokens = max_new_tokens
        self.seed = seed
        self.concurrency = concurrency
        self.timeout = timeout
        self.max_retries = max_retries
        self.max_total_tokens = max_total_tokens
        self._counting = Lock()

    @property
    def fingerprint(self) -> str:
        """Model, server and sampling."""
        names = {
            "model": self.model_name,
            "base_url": self.base_url,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
        }
        return json.dumps(names, sort_keys=True)

    @property
    def max_reply_tokens(self) -> int:
        """``max_new_tokens``."""
        return self.max_new_tokens

    @cached_property
    def client(self) -> openai.OpenAI:
        """The HTTP client.

        Raises:
            InputError: If OpenAI itself is asked and the environment holds no key.
        """
        key = os.environ.get(self.key_variable)
        if key is None and self.base_url is None:
            raise InputError(
                f"the environment variable {self.key_variable} is not set: put your OpenAI key"
                " there, or name a server of your own in environment.llm.init_args.base_url"
            )
        return openai.OpenAI(
            api_key=key or "none",
            base_url=self.base_url,
            timeout=self.timeout,
            max_retries=self.max_retries,
        )

    def generate(self, prompts: Sequence[str]) -> list[str | LanguageModelError]:
        """Replies in the order of the prompts; one that fails costs no other."""
        client = self.client
        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(lambda prompt: self._ask(client, prompt), prompts))

    def _ask(self, client: openai.OpenAI, prompt: str) -> str | LanguageModelError:
        used = self.usage.prompt_tokens + self.usage.reply_tokens
        if self.max_total_tokens is not None and used >= self.max_total_tokens:
            return LanguageModelError(
                f"the budget of {self.max_total_tokens} tokens is spent: raise max_total_tokens"
            )
        try:
            answer = client.chat.completions.create(
                model=self.model_name,
                messages=[{"role": "user", "content": prompt}],
                temperature=self.temperature,
                top_p=self.top_p,
                max_tokens=self.max_new_tokens,
                seed=self.seed,
            )
            text = answer.choices[0].message.content
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            return LanguageModelError(
                f"the server refused the key in {self.key_variable} (status {error.status_code})"
            )
        except openai.APIStatusError as error:
            return LanguageModelError(f"the server answered with status {error.status_code}")
        except (openai.OpenAIError, ValueError, AttributeError, IndexError, TypeError) as error:
            return LanguageModelError(f"no usable answer from the server: {type(error).__name__}")
        if answer.usage is not None:
            with self._counting:
                self.usage.prompt_tokens += answer.usage.prompt_tokens
                self.usage.reply_tokens += answer.usage.completion_tokens
        return text if text else LanguageModelError("the server sent an empty reply")

    def close(self) -> None:
        """Close the connections."""
        if "client" in self.__dict__:
            self.__dict__.pop("client").close()
