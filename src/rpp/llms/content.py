"""Fingerprints of models and adapters by their content."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from rpp.assets import cache_dir
from rpp.llms.tuned import METADATA_FILE

KINDS = (
    ".json", ".safetensors", ".bin", ".pt", ".gguf", ".jinja", ".model", ".txt", ".tiktoken",
)  # fmt: skip
"""Endings of the files that a model's answers depend on."""

SETTLED = 10
"""Seconds after its last change from which a file's times tell whether it changes again."""


def content_name(name: str) -> str:
    """A hub id as it is; a local folder or file by all that is in it."""
    path = Path(name)
    if path.is_file():
        return file_hash(path)
    if not path.is_dir():
        return name
    digest = hashlib.sha256()
    for file in _files(path):
        digest.update(f"{file.relative_to(path).as_posix()} {file_hash(file)}\n".encode())
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    """Files of a folder, and chat templates below it, in an order of their own."""
    for file in sorted({*folder.glob("*"), *folder.glob("*/*.jinja")}):
        if file.is_file() and file.suffix in KINDS and file.name != METADATA_FILE:
            yield file


def file_hash(path: Path) -> str:
    """SHA-256 of a whole file, in hexadecimal.

    Gigabytes are read once: the hash is kept in the cache folder by all that the file system
    tells of the file. Among it is the time of its last change of any kind, which no program can
    set back, so that a file put in its place is another one, be it of equal size and age.
    """
    stat = path.stat()
    is_settled = time.time() - stat.st_ctime > SETTLED
    told = (path.resolve(), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    key = hashlib.sha256(f"{told} {stat.st_ctime_ns}".encode()).hexdigest()
    kept = cache_dir() / "hashes" / key
    with suppress(OSError, UnicodeDecodeError):
        if is_settled and len(known := kept.read_text()) == 64:
            return known
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if is_settled:
        _keep(kept, found)
    return found


def _keep(path: Path, text: str) -> None:
    """Write a small file whole or not at all; where nothing can be written it is done again."""
    with suppress(OSError, UnicodeDecodeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(text)
        os.replace(file.name, path)
