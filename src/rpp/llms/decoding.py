"""Generation, constrained decoding and scoring, in batches that fit the memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from rpp.llms.base import Usage, first_line
from rpp.llms.decoder import Decoder
from rpp.llms.lines import Lines
from rpp.llms.noise import GumbelNoise
from rpp.llms.plan import Batch, plan
from rpp.types import LanguageModelError


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: 0 is greedy.
        top_p: Probability mass sampled from.
        seed: Seed of sampling, combined with each prompt.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def processors(self, prompts: Sequence[str], device: torch.device) -> LogitsProcessorList:
        """Logits processors that make the argmax a sample; empty for greedy decoding."""
        made = LogitsProcessorList()
        if self.temperature > 0:
            made += [TemperatureLogitsWarper(self.temperature)]
            if self.top_p < 1:
                made += [TopPLogitsWarper(self.top_p)]
            made += [GumbelNoise(prompts, self.seed, device)]
        return made


class BatchDecoding:
    """Runs prompts through a network in batches that fit the memory.

    A prompt that does not fit into memory gets an error instead of an answer.

    Args:
        decoder: Forward passes of the network.
        tokenizer: Its tokenizer.
        usage: Token counter.
        max_bytes: Memory for forward passes, besides the weights.
        share_prefixes: Whether prompts with a common prefix share a tree.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: PreTrainedTokenizerBase,
        usage: Usage,
        max_bytes: int,
        *,
        share_prefixes: bool,
    ) -> None:
        self.decoder = decoder
        self.tokenizer = tokenizer
        self.usage = usage
        self.max_bytes = max_bytes
        self.share_prefixes = share_prefixes

    @torch.inference_mode()
    def _run(
        self,
        prompt_ids: Sequence[list[int]],
        continuation_ids: Sequence[Sequence[list[int]]],
        work: Callable[[Batch], None],
        answers: list[Any],
        room: int = 0,
    ) -> None:
        """Process prompts in batches that fit; halve a batch that runs out of memory.

        Args:
            prompt_ids: Tokens of each prompt.
            continuation_ids: Tokens of its continuations; ``[[]]`` for none.
            work: Handles a batch.
            answers: One entry per prompt; an error where a prompt does not fit into memory.
            room: Tokens that may be generated after each prompt.
        """
        waiting = plan(
            self.decoder, prompt_ids, continuation_ids, room=room, max_bytes=self.max_bytes,
            share=self.share_prefixes,
        )  # fmt: skip
        while waiting:
            batch = waiting.pop(0)
            try:
                work(batch)
            except torch.OutOfMemoryError as error:
                if halves := batch.halves():
                    waiting[:0] = halves
                    continue
                for row in batch.rows:
                    answers[row] = _out_of_memory(error)

    def generate(
        self,
        prompts: Sequence[str],
        prompt_ids: Sequence[list[int]],
        sampling: Sampling,
        max_new_tokens: int,
    ) -> list[str | LanguageModelError]:
        """Free text after every prompt, independent of the batch.

        Args:
            prompts: ``B`` texts, which seed the sampling.
            prompt_ids: Their tokens inside the template.
            sampling: How the next token is drawn.
            max_new_tokens: Longest reply.
        """
        replies = _not_asked(len(prompts))

        def work(batch: Batch) -> None:
            some = [prompts[row] for row in batch.rows]
            new = self._write(batch, sampling.processors(some, self.decoder.device), max_new_tokens)
            self.usage.reply_tokens += int((new != self.tokenizer.pad_token_id).sum())
            texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
            for row, text in zip(batch.rows, texts, strict=True):
                replies[row] = text

        self._run(prompt_ids, [[[]]] * len(prompt_ids), work, replies, max_new_tokens)
        self.usage.prompt_tokens += sum(map(len, prompt_ids))
        return replies

    def _write(self, batch: Batch, processors: LogitsProcessorList, max_new_tokens: int) -> Tensor:
        """Tokens generated after the prompts of a batch, ``(B, at most max_new_tokens)``."""
        # the last token's keys and values are left out: its pass gives the first distribution
        known = self.decoder.prefill(batch.passes, max_new_tokens, last=False)
        ids: Tensor = self.decoder.network.generate(  # type: ignore[operator]  # untyped mixin
            input_ids=known.ids,
            attention_mask=known.known.long(),
            past_key_values=known.cache,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=self.tokenizer.pad_token_id,
            max_new_tokens=max_new_tokens,
            logits_processor=processors,
            disable_compile=True,
        )
        return ids[:, known.ids.shape[1] :]

    def generate_permutation(
        self,
        options: Sequence[Sequence[str]],
        prompt_ids: Sequence[list[int]],
        first: Sequence[Sequence[list[int]]],
        later: Sequence[Sequence[list[int]]],
    ) -> list[str | LanguageModelError]:
        """Constrained decoding: every token must continue an unused line.

        Args:
            options: For every prompt, the lines to permute.
            prompt_ids: Tokens of each prompt.
            first: Tokens of the lines at the beginning of a reply, line breaks included.
            later: Their tokens after another line.
        """
        replies = _not_asked(len(prompt_ids))

        def work(batch: Batch) -> None:
            states = [Lines(later[row], first[row]) for row in batch.rows]
            known = self.decoder.prefill(batch.passes, longest, last=True)
            self.usage.reply_tokens += self.decoder.generate_permutation(known, states)
            for row, state in zip(batch.rows, states, strict=True):
                replies[row] = "\n".join(options[row][k] for k in state.order)

        longest = max(map(_longest_reply, first, later), default=0)
        self._run(prompt_ids, [[[]]] * len(prompt_ids), work, replies, longest)
        self.usage.prompt_tokens += sum(map(len, prompt_ids))
        return replies

    def score(
        self, prompt_ids: Sequence[list[int]], continuation_ids: Sequence[Sequence[list[int]]]
    ) -> list[list[float] | LanguageModelError]:
        """Log-probabilities of all continuations in one forward pass per batch.

        Prompts with a common prefix and their continuations are one tree, in which every common
        token is computed once.

        Args:
            prompt_ids: Tokens of each prompt.
            continuation_ids: For every prompt, the tokens of its continuations; none is empty.
        """
        scores: list[list[float] | LanguageModelError] = [[] for _ in prompt_ids]

        def work(batch: Batch) -> None:
            pairs = [(row, ids) for row in batch.rows for ids in continuation_ids[row]]
            places = (path for trees in batch.passes for tree in trees for path in tree.paths)
            wanted = iter(
                [
                    (path[len(prompt_ids[row]) - 1 :], ids)
                    for path, (row, ids) in zip(places, pairs, strict=True)
                ]
            )
            found: list[float] = []
            for trees in batch.passes:
                asked = [[next(wanted) for _ in tree.paths] for tree in trees]
                found += self.decoder.log_probs(trees, asked).tolist()
            for row in batch.rows:
                scores[row] = found[: len(continuation_ids[row])]
                del found[: len(continuation_ids[row])]

        # nothing follows the last token of a continuation: it needs no forward pass
        passed = [[ids[:-1] for ids in row] for row in continuation_ids]
        self._run(prompt_ids, passed, work, scores)
        self.usage.prompt_tokens += sum(
            len(ids) + sum(map(len, row)) for ids, row in zip(prompt_ids, passed, strict=True)
        )
        return scores


def _not_asked(n: int) -> list[str | LanguageModelError]:
    return [LanguageModelError("not asked")] * n


def _longest_reply(first: Sequence[list[int]], later: Sequence[list[int]]) -> int:
    """Largest number of tokens of a prompt's lines."""
    return max(map(len, first), default=0) + sum(map(len, later))


def _out_of_memory(error: Exception) -> LanguageModelError:
    return LanguageModelError(
        f"out of memory for a single prompt ({first_line(error)}): use a quantised or smaller"
        " model, shorter histories, or another device"
    )
