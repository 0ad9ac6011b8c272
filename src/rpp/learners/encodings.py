"""Encodings of a data set's titles, kept beside its tables: no process makes them anew."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from rpp.data.artifacts import load_or_make
from rpp.encoders import PromptEncoder
from rpp.llms.content import content_name
from rpp.types import InputError

FILE = "titles.{name}.safetensors"


def recall_titles(encoder: PromptEncoder, folder: Path, titles: list[str]) -> None:
    """Let an encoder know the titles of a data set; they are encoded once for the folder.

    Args:
        encoder: The encoder.
        folder: The prepared folder; nothing is kept where there is none that can be written to.
        titles: Titles of all items.
    """
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return
    metadata = {
        "text_encoder": content_name(encoder.model),
        "reading": f"{encoder.max_tokens} tokens, {encoder.pooling}",
        "titles": hashlib.sha256(json.dumps(titles).encode()).hexdigest(),
    }

    def load(tensors: Mapping[str, Tensor]) -> Tensor:
        rows = tensors["encodings"]
        if rows.shape != (len(titles), encoder.dim):
            raise InputError("encodings of another number of titles or of another width")
        return rows

    name = hashlib.sha256(encoder.model.encode()).hexdigest()[:8]
    path = folder / FILE.format(name=name)
    encoder.remember(
        titles, load_or_make(path, metadata, load, lambda: {"encodings": encoder(titles)})
    )
