"""Language models behind an OpenAI-compatible server: ChatGPT, vLLM, SGLang, llama.cpp."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from rpp.llms.base import LanguageModel, Usage, check_sampling
from rpp.llms.budget import Budget
from rpp.llms.chat import ChatClient
from rpp.llms.grammar import permutation_grammar
from rpp.types import InputError, LanguageModelError

Answer = TypeVar("Answer")

INSTEAD = "use environment.decoding: generate with environment.show_candidates: true"


class OpenAILanguageModel(LanguageModel):
    """A chat model asked over HTTP.

    The key comes from the environment and is written nowhere. Of the decodings, ``generate``
    works with every server, ``first_token`` with those that give log-probabilities,
    ``constrained`` with those that take a grammar, ``likelihood`` with none: a chat server does
    not score a text it has not written.

    Args:
        model: Name of the model as the server knows it.
        base_url: Address of the server, such as ``http://localhost:8000/v1``; ``null`` is the one
            in the environment variable ``OPENAI_BASE_URL``, otherwise OpenAI.
        key_variable: Name of the environment variable that holds the key; servers without one
            need none.
        temperature: The paper uses 0.2; ``null`` leaves the field out, for models that refuse it.
        top_p: Probability mass sampled from; ``null`` likewise.
        max_new_tokens: Longest reply, the tokens of a model's thinking included.
        seed: Sent along; servers honour it as far as they can.
        concurrency: Requests under way at once.
        timeout: Seconds until a request is given up and repeated.
        max_retries: Repetitions after a timeout, a lost connection, status 429 or 5xx, and after
            an answer that is empty or cannot be read.
        max_total_tokens: Prompt and reply tokens of this run after which no further request is
            sent; ``null`` sets no limit. Several learner processes have equal parts of it.
        max_cost: Likewise for their price, in the currency of the prices. Requests under way are
            finished, so that at most ``concurrency`` replies come on top.
        prompt_price: Price of a million prompt tokens.
        reply_price: Price of a million reply tokens.
        context_length: Tokens of prompt and reply the server takes, by which long histories are
            shortened; ``null``: as many as there are.
        top_logprobs: For ``first_token``: how many first tokens the server shall name; OpenAI and
            vLLM allow 20 unless told otherwise.
        grammar: For ``constrained``: how the server takes a grammar, ``llama.cpp`` (field
            ``grammar``) or ``vllm`` (field ``structured_outputs``); ``null``: it takes none.
        extra: Further fields of every request, such as
            ``{chat_template_kwargs: {enable_thinking: false}}``.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        temperature: float | None = 0.2,
        top_p: float | None = 1.0,
        max_new_tokens: int = 400,
        seed: int = 0,
        concurrency: int = 8,
        timeout: float = 60.0,
        max_retries: int = 5,
        max_total_tokens: int | None = None,
        max_cost: float | None = None,
        prompt_price: float = 0.0,
        reply_price: float = 0.0,
        context_length: int | None = None,
        top_logprobs: int = 20,
        grammar: Literal["llama.cpp", "vllm"] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        if concurrency < 1:
            raise InputError(f"concurrency is {concurrency}: at least one request must be allowed")
        check_sampling(temperature, top_p, max_new_tokens, seed)
        for name, value, least in (
            ("timeout", timeout, 0.001), ("max_retries", max_retries, 0),
            ("top_logprobs", top_logprobs, 1),
        ):  # fmt: skip
            if not value >= least:
                raise InputError(f"{name} is {value}: it must be at least {least}")
        self.chat = ChatClient(
            model,
            base_url or os.environ.get("OPENAI_BASE_URL") or None,
            key_variable,
            timeout,
            max_retries,
            patience=2 * concurrency,
            budget=Budget(max_total_tokens, max_cost, prompt_price, reply_price),
        )
        self.usage = self.chat.usage
        self.temperature = temperature
        self.top_p = top_p
        self.max_new_tokens = max_new_tokens
        self.seed = seed
        self.concurrency = concurrency
        self.top_logprobs = top_logprobs
        self.grammar = grammar
        self.extra = dict(extra or {})
        self._context_length = context_length

    @property
    def fingerprint(self) -> str:
        """Model, server and sampling."""
        names = {
            "model": self.chat.model,
            "base_url": self.chat.base_url,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
            "top_logprobs": self.top_logprobs,
            "extra": self.extra,
        }
        return json.dumps(names, sort_keys=True)

    @property
    def context_length(self) -> int | None:
        """As given."""
        return self._context_length

    @property
    def max_reply_tokens(self) -> int:
        """``max_new_tokens``."""
        return self.max_new_tokens

    def share(self, n_processes: int) -> None:
        """Keep to this process's part of the budget."""
        self.chat.budget = self.chat.budget.part(n_processes)

    def cost(self, usage: Usage) -> float:
        """By ``prompt_price`` and ``reply_price``."""
        return self.chat.budget.cost(usage)

    def close(self) -> None:
        """Close the connections."""
        self.chat.close()

    def generate(self, prompts: Sequence[str]) -> list[str | LanguageModelError]:
        """Replies in the order of the prompts; one that fails costs no other."""
        return self._each(self._reply, prompts)

    def _reply(self, prompt: str) -> str:
        return self.chat.ask(
            prompt,
            self.max_new_tokens,
            self.extra,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
        ).text

    @property
    def _greedy(self) -> float | None:
        return None if self.temperature is None else 0.0

    def generate_permutation(
        self, prompts: Sequence[str], options: Sequence[Sequence[str]]
    ) -> list[str | LanguageModelError]:
        """Constrained replies by a grammar that the server enforces; the most probable token each.

        Raises:
            InputError: If the server takes no grammar, or there are more options than one can
                order.
        """
        if self.grammar is None:
            raise InputError(
                "decoding constrained needs a server that takes a grammar: set"
                f" environment.llm.init_args.grammar to llama.cpp or vllm, or {INSTEAD}"
            )
        return self._each(self._permutation, prompts, options)

    def _permutation(self, prompt: str, options: Sequence[str]) -> str:
        grammar = permutation_grammar(options)
        field: dict[str, Any] = {"grammar": grammar}
        if self.grammar == "vllm":
            field = {"structured_outputs": field}
        longest = sum(len(option.encode()) + 1 for option in options)  # no token is shorter
        reply = self.chat.ask(
            prompt, longest, self.extra | field, temperature=self._greedy, seed=self.seed
        ).text
        if sorted(reply.split("\n")) != sorted(options):
            raise InputError(
                f"the server does not keep to a grammar given in the way of {self.grammar}: choose"
                f" the other way in environment.llm.init_args.grammar, or {INSTEAD}"
            )
        return reply

    def score(
        self,
        prompts: Sequence[str],
        continuations: Sequence[Sequence[str]],
        response_prefixes: Sequence[str] | None = None,
    ) -> list[list[float] | LanguageModelError]:
        """Log-probability of each identifier as the reply's first token.

        Spellings that differ in the space before or after count together. Servers name the most
        probable tokens alone: an identifier that is not among them has minus infinity.

        Raises:
            InputError: If the server gives no log-probabilities, or if anything else than
                identifiers at the beginning of a reply is to be scored.
        """
        texts = {text for row in continuations for text in row}
        if any(response_prefixes or ()) or not all(
            re.fullmatch(r"[A-Z]{1,2}", text) for text in texts
        ):
            raise InputError(
                "decoding likelihood needs the probability of a text the model has not written,"
                f" which a chat server does not give: {INSTEAD}, or first_token where the server"
                " gives log-probabilities"
            )
        return self._each(self._first_token, prompts, continuations)

    def _first_token(self, prompt: str, identifiers: Sequence[str]) -> list[float]:
        told = self.chat.ask(
            prompt,
            1,
            self.extra,
            temperature=self._greedy,
            seed=self.seed,
            logprobs=True,
            top_logprobs=self.top_logprobs,
        ).first_tokens
        if told is None:
            raise InputError(f"the server gives no log-probabilities: {INSTEAD}")
        mass = dict.fromkeys(identifiers, 0.0)
        for token, log_prob in told:  # nothing told: the reply ended at once
            name = token.strip(" \u2581")  # the latter is SentencePiece's space
            if name in mass:
                mass[name] += math.exp(log_prob)
        return [math.log(mass[name]) if mass[name] else -math.inf for name in identifiers]

    def _each(
        self, ask: Callable[..., Answer], *columns: Sequence[Any]
    ) -> list[Answer | LanguageModelError]:
        """Ask row by row, ``concurrency`` at once; a failure stands in the place of its answer."""

        def one(*row: Any) -> Answer | LanguageModelError:
            try:
                return ask(*row)
            except LanguageModelError as error:
                return error

        if len(columns[0]) == 1:  # as the cache asks, in a thread of its own
            return [one(*(column[0] for column in columns))]
        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(one, *columns))
