"""Sampling whose outcome does not depend on the batch a prompt is in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from transformers import LogitsProcessor


class GumbelNoise(LogitsProcessor):
    """Sampling as an argmax: standard Gumbel noise from a generator of each prompt's own.

    The most probable token after adding it is a draw from the distribution, so that a reply
    depends on its prompt and the seed, never on the batch it was made in. The numbers are drawn
    where the network runs; another kind of device draws others.
    """

    def __init__(
        self, prompts: Sequence[str], seed: int, device: torch.device | None = None
    ) -> None:
        self.generators = [
            torch.Generator(device or "cpu").manual_seed(
                int.from_bytes(hashlib.sha256(f"{seed} {prompt}".encode()).digest()[:7], "big")
            )
            for prompt in prompts
        ]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores with noise, shape ``(B, vocabulary)``."""
        noise = torch.stack(
            [
                -torch.empty(scores.shape[1], device=g.device).exponential_(generator=g).log()
                for g in self.generators
            ]
        )
        return scores + noise.to(scores)  # type: ignore[return-value]
