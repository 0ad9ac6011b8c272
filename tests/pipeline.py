"""The whole pipeline on made-up users: data module, agents, ranker, test table; no weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from rpp.callbacks.environment import RewardEnvironment
from rpp.data.datamodule import EpisodeDataModule
from rpp.data.directory import Directory
from rpp.data.vectors import CollaborativeVectors
from rpp.learners.rpp import RPP
from rpp.llms.base import ScriptedLanguageModel
from rpp.types import Episode, Item, Split

PATTERNS = "conf/patterns/movies.yaml"
N_ITEMS = 400


def title(item: int) -> str:
    return f"Picture {item:03d}"


def make_episode(user: int, split: Split, n_candidates: int, seed: int = 0) -> Episode:
    rng = np.random.default_rng([seed, user])
    items = [Item(int(k), title(int(k))) for k in rng.choice(N_ITEMS, 30, replace=False)]
    target = int(rng.integers(n_candidates))
    return Episode(
        user=user,
        history=tuple(items[n_candidates:]),
        candidates=tuple(items[:n_candidates]),
        withheld=target,
        split=split,
        user_id=f"u{user}",
    )


class MadeUpUsers(EpisodeDataModule):
    """Users with random histories and vectors in the place of prepared ones; sets disjoint."""

    def __init__(
        self, n_train: int = 200, n_validation: int = 50, n_test: int = 400, n_candidates: int = 10,
        batch_size: int = 200, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(batch_size=batch_size, n_candidates=n_candidates, seed=seed)
        counts: dict[Split, int] = {"train": n_train, "validation": n_validation, "test": n_test}
        start = 0
        for split, count in counts.items():
            users = range(start, start + count)
            self._episodes[split] = [make_episode(u, split, n_candidates, seed) for u in users]
            start += count
        rng = torch.Generator().manual_seed(seed)
        self.vectors = CollaborativeVectors(
            torch.randn(start, 16, generator=rng), torch.randn(N_ITEMS, 16, generator=rng)
        )

    def prepare_data(self) -> None:
        """There is nothing to prepare."""

    def setup(self, stage: str) -> None:
        """Everything is there already."""

    @property
    def popularity(self) -> np.ndarray:
        return np.arange(N_ITEMS)

    @property
    def catalogue(self) -> list[Item]:
        return [Item(k, title(k)) for k in range(N_ITEMS)]

    @property
    def directory(self) -> Directory:
        items = [(f"i{item.index}", item.title) for item in self.catalogue]
        return Directory(
            *zip(*items, strict=True), [f"u{k}" for k in range(len(self.vectors.users))]
        )

    @property
    def summary(self) -> dict[str, Any]:
        seed, n_candidates = self.settings.seed, self.settings.n_candidates
        settings = {"name": "made-up", "seed": seed, "n_candidates": n_candidates}
        return {"fingerprint": f"made up {seed}", "settings": settings}


class HashEncoder:
    """Stands in for BERT: a fixed random vector for every line of a prompt, summed."""

    model = "hash"
    dim = 32

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        rows = [
            np.sum([_line_vector(line, self.dim) for line in t.splitlines()], axis=0) for t in texts
        ]
        return torch.tensor(np.array(rows), dtype=torch.float32)


@lru_cache(maxsize=100_000)
def _line_vector(line: str, dim: int) -> np.ndarray:
    return np.random.default_rng(list(line.encode())).normal(size=dim)


def module(**options: Any) -> RPP:
    made = RPP(patterns=PATTERNS, **options)
    made.encoder = HashEncoder()  # type: ignore[assignment]
    return made


def environment(
    reply: Callable[[str], Any] | str = "", decoding: str = "generate", **options: Any
) -> RewardEnvironment:
    llm = ScriptedLanguageModel(reply=reply)
    return RewardEnvironment(llm, decoding, cache_dir=None, **options)  # type: ignore[arg-type]


def trainer(tmp_path: Path, *callbacks: Callback, **options: Any) -> Trainer:
    seed_everything(0, verbose=False)
    return Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=options.pop("logger", False),
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        callbacks=list(callbacks), **options,
    )  # fmt: skip


def shown_history(prompt: str) -> list[str]:
    """Titles of the history in the order a prompt lists them."""
    return re.findall(r"^\d+\. (Picture .+)$", prompt, flags=re.MULTILINE)
