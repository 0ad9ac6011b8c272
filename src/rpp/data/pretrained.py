"""LightGCN vectors of a prepared folder: trained once, then read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import polars as pl
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_prep.tables import ITEMS_FILE, USERS_FILE, load_summary, scan_table
from rpp.data.artifacts import load_or_make
from rpp.data.interactions import load_training_pairs
from rpp.data.lightgcn import LightGCNSettings, train_lightgcn
from rpp.data.vectors import CollaborativeVectors
from rpp.types import InputError

VECTORS_FILE = "collaborative.safetensors"
"""Name of the file in the prepared folder that holds the trained vectors."""


def load_or_train(folder: Path, settings: LightGCNSettings | None = None) -> CollaborativeVectors:
    """Vectors for a prepared folder, trained once and cached as ``collaborative.safetensors``.

    The file is reused only for the same training interactions (by their fingerprint in
    ``summary.json``) and the same settings.

    Args:
        folder: A folder written by ``python -m data_prep``.
        settings: How to train; by default those of the existing vectors, else the defaults.

    Raises:
        InputError: If the folder is incomplete or cannot be written to.
    """
    folder = Path(folder)
    settings = settings or _recorded_settings(folder / VECTORS_FILE)
    fingerprint = load_summary(folder).get("train_fingerprint")
    if not fingerprint:
        raise InputError(f"{folder} has no fingerprint of its training data: prepare it again")
    metadata = {
        "train_fingerprint": str(fingerprint),
        "settings": json.dumps(asdict(settings), sort_keys=True),
    }
    sizes = _n_rows(folder, USERS_FILE), _n_rows(folder, ITEMS_FILE)

    def load(tensors: Mapping[str, Tensor]) -> CollaborativeVectors:
        vectors = CollaborativeVectors(tensors["users"], tensors["items"])
        if (len(vectors.users), len(vectors.items)) != sizes:
            raise InputError("vectors of other numbers of users or items")
        return vectors

    def make() -> Mapping[str, Tensor]:
        vectors = train_lightgcn(*load_training_pairs(folder), *sizes, settings)
        return {"users": vectors.users, "items": vectors.items}

    return load_or_make(folder / VECTORS_FILE, metadata, load, make)


def _recorded_settings(path: Path) -> LightGCNSettings:
    """Settings of the vectors of a file; the defaults if they cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return LightGCNSettings(**json.loads((file.metadata() or {})["settings"]))
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError):
        return LightGCNSettings()


def _n_rows(folder: Path, name: str) -> int:
    """Number of rows of a prepared table."""
    return int(scan_table(folder, name).select(pl.len()).collect().item())
