"""Fingerprints of models and adapters by their content."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rpp.llms.tuned import ABOUT


def content_name(name: str) -> str:
    """A hub id unchanged; a local folder by the hash of its files."""
    folder = Path(name)
    if not folder.is_dir():
        return name
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*")):
        kinds = (".json", ".safetensors", ".bin", ".jinja", ".model", ".txt")
        if file.suffix in kinds and file.name != ABOUT:
            digest.update(f"{file.name} {file.stat().st_size}".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(1 << 20))
                stream.seek(max(0, file.stat().st_size - (1 << 20)))
                digest.update(stream.read())
    return digest.hexdigest()
