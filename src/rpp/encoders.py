"""Frozen text encoders, of prompts for the agents and of titles for the text baselines."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rpp.assets import resolve_model
from rpp.types import InputError

BATCH_TEXTS = 8
"""Texts encoded at once."""

TOKEN_STEP = 8
"""Texts are padded to a multiple of this number of tokens."""


class PromptEncoder:
    """A frozen BERT-type text encoder; encodings are kept in memory.

    Not a submodule of anything: its weights are in no checkpoint and no optimizer.

    Args:
        model: ``minilm-l6`` (embedded, fetched once), a local folder or a hub id such as
            ``bert-base-uncased`` (the paper's).
        max_tokens: Longer prompts are truncated; BERT reads at most 512.
        n_kept: Number of cached encodings.
        pooling: ``mean`` of all tokens' outputs, or that of the first token, ``cls``.
    """

    def __init__(
        self,
        model: str = "minilm-l6",
        max_tokens: int = 512,
        n_kept: int = 20_000,
        pooling: Literal["mean", "cls"] = "mean",
    ) -> None:
        self.model = model
        self.max_tokens = max_tokens
        self.n_kept = n_kept
        self.pooling = pooling
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The encoder's tokenizer."""
        tokenizer: PreTrainedTokenizerBase = self._load(AutoTokenizer)
        return tokenizer

    @cached_property
    def network(self) -> PreTrainedModel:
        """The frozen encoder."""
        network: PreTrainedModel = self._load(AutoModel)
        network.eval().requires_grad_(False)
        return network

    def _load(self, kind: type[Any]) -> Any:
        try:
            return kind.from_pretrained(resolve_model(self.model))
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot load the prompt encoder {self.model!r}: {str(error).splitlines()[0]}"
                " Name a local folder, a hub id, or the embedded minilm-l6"
            ) from error

    @property
    def dim(self) -> int:
        """Width ``E`` of an encoding."""
        return int(self.network.config.hidden_size)

    def place(self, device: torch.device) -> None:
        """Run on a device."""
        self.network.to(device)  # type: ignore[arg-type]

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Encode texts.

        Returns:
            Shape ``(B, E)``, on the CPU, without gradient; a row depends only on its own text,
            bit for bit.
        """
        if new := [text for text in dict.fromkeys(texts) if text not in self._known]:
            self._known.update(zip(new, self._encode(new), strict=True))
        rows = torch.stack([self._known[text] for text in texts])
        for text in texts:
            self._known.move_to_end(text)
        self._forget()
        return rows

    def remember(self, texts: Sequence[str], rows: Tensor) -> None:
        """Keep encodings made before; ``(B, E)``, a row for each text."""
        self._known.update(zip(texts, rows, strict=True))
        self._forget()

    def _forget(self) -> None:
        """Drop the encodings not used for longest, if there are too many."""
        while len(self._known) > self.n_kept:
            self._known.popitem(last=False)

    def _encode(self, texts: list[str]) -> Tensor:
        """Encode texts in batches of one shape for all texts of similar lengths.

        The shape decides the order of additions. A resumed run may encode a text in another batch
        than the original run did, and must end with the same numbers.
        """
        tokens = self.tokenizer(texts, truncation=True, max_length=self.max_tokens).input_ids
        rows_of_width: dict[int, list[int]] = {}
        for row, own in enumerate(tokens):
            width = min(-(-len(own) // TOKEN_STEP) * TOKEN_STEP, self.max_tokens)
            rows_of_width.setdefault(width, []).append(row)
        pooled = torch.empty(len(texts), self.dim)
        for width, rows in rows_of_width.items():
            for start in range(0, len(rows), BATCH_TEXTS):
                some = rows[start : start + BATCH_TEXTS]
                pooled[some] = self._pool([tokens[row] for row in some], width)
        return pooled

    @torch.no_grad()
    def _pool(self, tokens: list[list[int]], width: int) -> Tensor:
        """Pooled vector of each text's own tokens, in a batch of the full shape."""
        padded = torch.full((BATCH_TEXTS, width), self.tokenizer.pad_token_id)
        mask = torch.zeros(BATCH_TEXTS, width, dtype=torch.long)
        mask[:, 0] = 1  # of the empty rows
        for row, own in enumerate(tokens):
            padded[row, : len(own)] = torch.tensor(own)
            mask[row, : len(own)] = 1
        padded, mask = padded.to(self.network.device), mask.to(self.network.device)
        hidden = self.network(input_ids=padded, attention_mask=mask).last_hidden_state
        if self.pooling == "cls":
            first: Tensor = hidden[: len(tokens), 0].cpu()
            return first
        weights = mask[..., None].to(hidden)
        means: Tensor = ((hidden * weights).sum(1) / weights.sum(1)).cpu()
        return means[: len(tokens)]


@lru_cache(maxsize=1)
def shared_encoder(model: str) -> PromptEncoder:
    """The shared prompt encoder of that name: compared policies encode the same sentences."""
    return PromptEncoder(model)


def encode_parts(
    encode: Callable[[Sequence[str]], Tensor], prompts: Sequence[Sequence[str]]
) -> Tensor:
    r"""Encode prompts as the weighted mean over their sentences, headings and titles.

    .. math:: e_p = \sum_{s \in p} |s| \, \mathrm{BERT}(s) \, / \sum_{s \in p} |s|

    Each part is weighted by its length :math:`|s|` in characters, similar to the mean over the
    tokens of a whole prompt, but without attention between parts. Parts recur across prompts and
    are encoded once each; encoding whole prompts costs more than the rest of the learner.

    Args:
        encode: Texts to their encodings, ``(S, E)``.
        prompts: The parts of ``B`` prompts, at least one each.

    Returns:
        Shape ``(B, E)``.
    """
    parts = [part for prompt in prompts for part in prompt]
    rows = {part: row for row, part in enumerate(dict.fromkeys(parts))}
    weights = [
        len(part) / total
        for prompt in prompts
        for total in [sum(map(len, prompt))]
        for part in prompt
    ]
    means: Tensor = functional.embedding_bag(
        torch.tensor([rows[part] for part in parts]),
        encode(list(rows)),
        torch.tensor([0, *accumulate(map(len, prompts[:-1]))]),
        mode="sum",
        per_sample_weights=torch.tensor(weights),
    )
    return means
