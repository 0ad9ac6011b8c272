"""What a checkpoint carries of recommenders, so that prompts can name what they say without data.

It is what they are fitted to: the training interactions, by rows of users and items, and the
episodes their settings are chosen on. They are fitted again where the policy is loaded. Plain
values and tensors, which ``torch.load`` reads with ``weights_only``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rpp.baselines.base import TrainingData
from rpp.baselines.evidence import RecommenderEvidence
from rpp.data.vectors import CollaborativeVectors
from rpp.prompts.evidence import EvidencePattern
from rpp.types import Episode, InputError, Item

EVIDENCE = "evidence"
"""Key of a checkpoint."""

TENSORS = ("counts", "items", "spare_users", "spare_candidates")
"""Interactions of each user; their items, user by user, the oldest first; users of no episode on
whom settings are chosen; their candidates, the target first."""


def pack(evidence: RecommenderEvidence) -> dict[str, Any]:
    """What a checkpoint is to carry: 4 bytes for each interaction, and little besides."""
    data = evidence.data
    spare = data.validation
    columns = (
        np.bincount(data.users, minlength=data.n_users),
        data.items,
        [episode.user for episode in spare],
        [[item.index for item in episode.candidates] for episode in spare],
    )
    tensors = [torch.as_tensor(column, dtype=torch.int32) for column in columns]
    return {
        "evidence": evidence.fingerprint,
        "seed": evidence.seed,
        "data": data.fingerprint,
        "name": data.name,
        "checksum": _checksum(tensors),
        **dict(zip(TENSORS, tensors, strict=True)),
    }


def unpack(
    carried: Mapping[str, Any] | None,
    pattern: EvidencePattern | None,
    titles: Sequence[str],
    vectors: CollaborativeVectors,
    folder: Path,
) -> RecommenderEvidence:
    """The same recommenders as :func:`pack` was given, not fitted yet.

    Args:
        carried: What it wrote.
        pattern: The sources.
        titles: Of the items.
        vectors: Of the same users and items.
        folder: Where what is learnt is looked for, and kept if it can be written to.

    Raises:
        InputError: If the checkpoint carries nothing, something damaged, or what other recommenders
            were fitted to.
    """
    if not isinstance(carried, Mapping):
        raise InputError(
            "this policy's prompts need recommenders, and its checkpoint does not hold what they"
            " are fitted to, for it was written by an earlier version of rpp or after the fit had"
            " ended: fit again, and take what the fit has written"
        )
    tensors = [carried[name] for name in TENSORS if name in carried]
    if _checksum(tensors) != carried.get("checksum"):
        raise InputError(
            "what this policy's recommenders are fitted to is damaged in the checkpoint: take"
            " another copy of it, or fit again"
        )
    evidence = RecommenderEvidence(
        pattern, _data(carried, titles, vectors, folder), int(carried["seed"])
    )
    if evidence.fingerprint != carried["evidence"]:
        raise InputError(
            "the recommenders of this policy are others than at its fit: restore their classes and"
            " arguments, or fit again"
        )
    return evidence


def _data(
    carried: Mapping[str, Any],
    titles: Sequence[str],
    vectors: CollaborativeVectors,
    folder: Path,
) -> TrainingData:
    counts, items, users, candidates = (carried[name].numpy().astype(np.int64) for name in TENSORS)
    catalogue = [Item(index, title) for index, title in enumerate(titles)]
    histories = np.split(items, counts.cumsum()[:-1])

    def episode(user: int, shown: Sequence[int]) -> Episode:
        past, listed = (tuple(catalogue[k] for k in each) for each in (histories[user], shown))
        return Episode(user, past, listed, 0, "validation")

    return TrainingData(
        folder,
        np.repeat(np.arange(len(counts)), counts),
        items,
        len(counts),
        tuple(titles),
        tuple(map(episode, users.tolist(), candidates.tolist())),
        str(carried["data"]),
        str(carried["name"]),
        vectors=vectors,
        keeps=os.access(folder, os.W_OK),
    )


def _checksum(tensors: Iterable[Tensor]) -> str:
    """Of what is carried: PyTorch does not notice a changed byte."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()[:16]
