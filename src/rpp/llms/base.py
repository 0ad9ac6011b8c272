"""The extension point most users need: a frozen language model as a function of text."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from rpp.arguments import RecordsArguments
from rpp.types import InputError, LanguageModelError


def check_sampling(
    temperature: float | None, top_p: float | None, max_new_tokens: int, seed: int
) -> None:
    """Refuse settings of a reply's sampling that are out of range.

    Raises:
        InputError: If one is.
    """
    wrong = {
        f"temperature is {temperature}: it must be 0 (greedy) or more": (
            temperature is not None and not 0 <= temperature < math.inf
        ),
        f"top_p is {top_p}: it must be above 0 and at most 1": (
            top_p is not None and not 0 < top_p <= 1
        ),
        f"max_new_tokens is {max_new_tokens}: it must be at least 1": max_new_tokens < 1,
        f"seed is {seed}: it must be from 0 to 2^63 - 1": not 0 <= seed < 2**63,
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise InputError(message)


def first_line(error: BaseException) -> str:
    """First line of an error's message, or its kind if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@dataclass
class Usage:
    """Prompt and reply tokens of a language model so far, without cached replies."""

    prompt_tokens: int = 0
    reply_tokens: int = 0


class LanguageModel(RecordsArguments, ABC):
    """A frozen language model.

    Subclass it for your own model and name the class in the YAML
    (``environment.llm.class_path: my_package.MyModel``). Only :meth:`generate` and
    :attr:`fingerprint` are required; the decodings ``first_token``, ``likelihood`` and
    ``constrained`` also need :meth:`score`.

    Attributes:
        concurrency: Number of concurrent calls. With 1, prompts come in batches. With more, for
            models behind a network, each call has its own thread and a single prompt, and each
            reply is cached on arrival.
    """

    concurrency: int = 1

    @cached_property
    def usage(self) -> Usage:
        """Prompt and reply tokens so far."""
        return Usage()

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Identifies weights, adapter, revision, precision and decoding: key of the cache."""

    @abstractmethod
    def generate(self, prompts: Sequence[str]) -> list[str | LanguageModelError]:
        """Answer every prompt.

        Args:
            prompts: Plain texts; the model applies its own chat template.

        Returns:
            One reply per prompt, in order.

        Raises:
            LanguageModelError: If no prompt could be answered.
        """

    def score(
        self,
        prompts: Sequence[str],
        continuations: Sequence[Sequence[str]],
        response_prefixes: Sequence[str] | None = None,
    ) -> list[list[float] | LanguageModelError]:
        """Log-probability of each continuation as the next text of the reply.

        Args:
            prompts: ``B`` texts.
            continuations: For every prompt, the texts to score, independently of each other.
            response_prefixes: For every prompt, the given beginning of the reply.

        Returns:
            For every prompt, one natural log-probability per continuation, summed over its
            tokens; minus infinity where the model returns none because others are more probable.

        Raises:
            InputError: If the model gives no probabilities.
            LanguageModelError: If no prompt could be scored.
        """
        raise InputError(
            f"{type(self).__name__} gives no probabilities: use environment.decoding: generate"
            " with environment.show_candidates: true"
        )

    def generate_permutation(
        self, prompts: Sequence[str], options: Sequence[Sequence[str]]
    ) -> list[str | LanguageModelError]:
        """Generate a permutation of the options, one per line: constrained decoding.

        The default calls :meth:`score` for the best remaining option, line by line; a backend
        with a key-value cache is faster.

        Args:
            prompts: ``B`` texts.
            options: For every prompt, the lines to permute.

        Returns:
            For every prompt, its options in the order chosen, separated by line breaks.
        """
        lines: list[list[str]] = [[] for _ in prompts]
        left = [list(each) for each in options]
        errors: dict[int, LanguageModelError] = {}
        while rows := [r for r in range(len(prompts)) if len(left[r]) > 1 and r not in errors]:
            scores = self.score(
                [prompts[row] for row in rows],
                [[option + "\n" for option in left[row]] for row in rows],
                ["".join(line + "\n" for line in lines[row]) for row in rows],
            )
            for row, score in zip(rows, scores, strict=True):
                if isinstance(score, LanguageModelError):
                    errors[row] = score
                else:
                    lines[row].append(left[row].pop(score.index(max(score))))
        return [errors.get(row, "\n".join(lines[row] + left[row])) for row in range(len(prompts))]

    def cost(self, usage: Usage) -> float:
        """Price of some tokens, in the currency of the prices; 0 without prices."""
        return 0.0

    def share(self, n_processes: int) -> None:
        """Divide every limit among this number of learner processes."""
        return

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a text; an estimate if the model has no local tokenizer."""
        return len(text) // 4 + 1

    @property
    def context_length(self) -> int | None:
        """Largest number of tokens of prompt and reply together; ``None`` if unlimited."""
        return None

    @property
    def max_reply_tokens(self) -> int:
        """Longest reply of :meth:`generate`, for which a prompt has to leave room."""
        return 256

    def close(self) -> None:
        """Free the resources of the model; called at the end of the run."""
        return None


@dataclass
class ScriptedLanguageModel(LanguageModel):
    """A language model with scripted answers, for tests and for trying a configuration.

    Args:
        reply: Function of the prompt, or one text for all; YAML can only give a text.
        scorer: Function of prompt and continuation.
        name: Part of the fingerprint; change it together with the functions.
        context: Context length in tokens, if limited.
    """

    reply: Callable[[str], str | LanguageModelError] | str = ""
    scorer: Callable[[str, str], float] | None = None
    name: str = "scripted"
    context: int | None = None

    @property
    def fingerprint(self) -> str:
        """The given name."""
        return self.name

    @property
    def context_length(self) -> int | None:
        """The given context."""
        return self.context

    def generate(self, prompts: Sequence[str]) -> list[str | LanguageModelError]:
        """The scripted replies."""
        replies = [self.reply if isinstance(self.reply, str) else self.reply(p) for p in prompts]
        self.usage.prompt_tokens += sum(map(self.count_tokens, prompts))
        self.usage.reply_tokens += sum(self.count_tokens(r) for r in replies if isinstance(r, str))
        return replies

    def score(
        self,
        prompts: Sequence[str],
        continuations: Sequence[Sequence[str]],
        response_prefixes: Sequence[str] | None = None,
    ) -> list[list[float] | LanguageModelError]:
        """The scripted scores; a response prefix is part of the prompt."""
        if self.scorer is None:
            return super().score(prompts, continuations, response_prefixes)
        prompts = [
            p + b for p, b in zip(prompts, response_prefixes or [""] * len(prompts), strict=True)
        ]
        self.usage.prompt_tokens += sum(map(self.count_tokens, prompts))
        scorer = self.scorer
        return [
            [scorer(prompt, text) for text in texts]
            for prompt, texts in zip(prompts, continuations, strict=True)
        ]
