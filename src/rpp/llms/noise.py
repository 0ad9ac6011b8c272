"""Sampling that is independent of the batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from transformers import LogitsProcessor


class GumbelNoise(LogitsProcessor):
    """Gumbel-max sampling with a random generator per prompt.

    The argmax of the scores plus standard Gumbel noise is a sample from the distribution. A reply
    therefore depends on its prompt and the seed, not on the batch. The noise is drawn on the
    network's device; another kind of device gives other numbers.
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
