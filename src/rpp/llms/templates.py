"""Chat template and tokenisation of prompts."""

from __future__ import annotations

from typing import Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rpp.llms.base import first_line
from rpp.types import InputError

Template = Literal["chat", "alpaca", "none"]

ALPACA = "### Instruction:\n{prompt}\n\n### Response:\n"
"""Prompt template of Alpaca-type instruction-tuned models."""


class PromptTokenizer:
    """Applies a template to prompts and tokenises texts.

    Args:
        tokenizer: The model's tokenizer.
        template: ``chat``, ``alpaca`` or ``none``.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
        self.tokenizer = tokenizer
        self.template = template

    def render(self, prompt: str) -> str:
        """A prompt inside its template, up to the beginning of the reply.

        Raises:
            InputError: If the chat template fails, or has no place for the prompt.
        """
        if self.template == "chat":
            return self._chat(prompt)
        return ALPACA.format(prompt=prompt) if self.template == "alpaca" else prompt

    def _chat(self, prompt: str) -> str:
        try:
            text = str(
                self.tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}],
                    tokenize=False,
                    add_generation_prompt=True,
                )
            )
        except (TemplateError, TypeError, ValueError, AttributeError, LookupError) as error:
            raise self._refusal(f"cannot be filled ({first_line(error)})") from error
        if prompt.strip()[:20] not in text:
            raise self._refusal("leaves the prompt out")
        return text

    def _refusal(self, what: str) -> InputError:
        return InputError(
            f"the chat template of {self.tokenizer.name_or_path!r} {what}: set"
            " environment.llm.init_args.template to alpaca or none, or mend the template"
        )

    @property
    def _adds_special(self) -> bool:
        """Whether the tokenizer adds its special tokens; a chat template contains them."""
        return self.template != "chat"

    def encode(self, prompt: str, response_prefix: str = "") -> list[int]:
        """Token ids of a prompt inside its template and the beginning of its reply."""
        text = self.render(prompt) + response_prefix
        return list(self.tokenizer(text, add_special_tokens=self._adds_special).input_ids)

    def encode_with_starts(self, rendered: str) -> tuple[list[int], list[int]]:
        """Token ids of a rendered prompt, and the character offset of each."""
        encoded = self.tokenizer(
            rendered, add_special_tokens=self._adds_special, return_offsets_mapping=True
        )
        return list(encoded.input_ids), [start for start, _ in encoded.offset_mapping]

    def continuation(self, text: str, after: str = "") -> list[int]:
        """Token ids of a text as tokenised within a reply.

        Args:
            text: The text.
            after: The preceding text, of which the last character is enough: SentencePiece
                tokenises a text on its own differently, with a blank before it.
        """
        before, both = self._plain_ids(after) if after else [], self._plain_ids(after + text)
        return both[len(before) :] if both[: len(before)] == before else self._plain_ids(text)

    def _plain_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)
