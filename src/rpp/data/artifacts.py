"""Cached tensors: written atomically, reused only with the same metadata."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rpp.types import InputError

log = logging.getLogger(__name__)

Result = TypeVar("Result")


def load_or_make(
    path: Path,
    metadata: Mapping[str, str],
    load: Callable[[Mapping[str, Tensor]], Result],
    make: Callable[[], Mapping[str, Tensor]],
) -> Result:
    """Load an object from cached tensors, which are made first if necessary.

    Args:
        path: The safetensors file, in a folder that exists.
        metadata: What the tensors depend on; saved with them. A file with other metadata is
            replaced.
        load: From tensors to the result; after a ``KeyError`` or an ``InputError`` the file is
            replaced.
        make: Makes the tensors; one process at a time.

    Raises:
        InputError: If the folder cannot be written to, or new tensors cannot be loaded.
    """
    if (result := _read(path, metadata, load)) is not None:
        return result
    try:
        with FileLock(path.with_name(f".{path.name}.lock")):
            # another process may have made them while this one waited
            if (result := _read(path, metadata, load, quiet=True)) is not None:
                return result
            tensors = make()
            result = load(tensors)
            write(path, tensors, metadata)
    except PermissionError as error:
        raise InputError(
            f"{path.parent} cannot be written to, so {path.name} cannot be saved: copy the folder"
            " to a place that can"
        ) from error
    return result


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a temporary file, then rename it."""
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temp:
        fresh = Path(temp) / path.name
        save_file(dict(tensors), fresh, metadata=dict(metadata))
        fresh.chmod(0o644)  # safetensors writes for the owner alone; prepared data may be shared
        os.replace(fresh, path)


def _read(
    path: Path,
    metadata: Mapping[str, str],
    load: Callable[[Mapping[str, Tensor]], Result],
    quiet: bool = False,
) -> Result | None:
    """The result of a cached file; ``None``, with a message, if it is damaged or outdated."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            found = file.metadata() or {}
            changed = [key for key, value in metadata.items() if found.get(key) != value]
            if not changed:
                return load({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
        reason = f"was made with other {' and '.join(changed).replace('_', ' ')}"
    except (SafetensorError, OSError, InputError, KeyError):
        reason = "is damaged"
    if not quiet:
        log.warning("%s %s: making it again", path, reason)
    return None
