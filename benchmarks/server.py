"""Throughput of a server client, also under faults: ``python -m benchmarks.server``.

The limit is the throughput of a bare asyncio client at the same concurrency. Ours is the complete
path of a prompt in training: :class:`CachedLanguageModel` with its file, OpenAI client, threads.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tracemalloc
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import count
from operator import eq
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import httpx2
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.llama_server import start
from benchmarks.stub_server import FAULTS, Stub, running
from rpp.llms.cache import ReplyCache
from rpp.llms.cached import CachedLanguageModel
from rpp.llms.openai import OpenAILanguageModel
from rpp.types import LanguageModelError

numbers = count()


def prompts_of(n: int, length: int = 40) -> list[str]:
    """Different prompts, by default of about the length of a ranking task."""
    return [f"{next(numbers)} " + "one of the films I liked, " * length for _ in range(n)]


async def ask_bare(url: str, prompts: Sequence[str], concurrency: int, max_tokens: int) -> None:
    """Send the prompts with a bare HTTP client."""
    waiting = iter(prompts)

    async def work(client: httpx2.AsyncClient) -> None:
        for prompt in waiting:
            body = {
                "model": "m",
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": max_tokens,
            }
            answer = await client.post(f"{url}/chat/completions", json=body)
            assert answer.json()["choices"]

    async with httpx2.AsyncClient(timeout=600) as client:
        await asyncio.gather(*(work(client) for _ in range(concurrency)))


def ask_ours(url: str, prompts: Sequence[str], concurrency: int, max_tokens: int) -> None:
    """Send the prompts as in training."""
    model = OpenAILanguageModel(
        "m", url, concurrency=concurrency, max_new_tokens=max_tokens, timeout=600
    )
    with TemporaryDirectory() as folder:
        llm = CachedLanguageModel(model, ReplyCache(folder))
        replies = llm.generate(prompts)
        assert not any(isinstance(reply, LanguageModelError) for reply in replies)
        llm.close()


def compare(
    url: str, n: int, concurrency: int, repeats: int, max_tokens: int = 16, length: int = 40
) -> list[str]:
    """Prompts per second of the bare client and of ours, alternating; medians and ratio."""

    def rate(ask: Callable[[], None]) -> float:
        started = perf_counter()
        ask()
        return n / (perf_counter() - started)

    ask_ours(url, prompts_of(concurrency, 1), concurrency, max_tokens)  # imports and certificates
    bare, ours = [], []
    for _ in range(repeats):
        bare.append(
            rate(lambda: asyncio.run(ask_bare(url, prompts_of(n, length), concurrency, max_tokens)))
        )
        ours.append(rate(lambda: ask_ours(url, prompts_of(n, length), concurrency, max_tokens)))
    return [f"{median(bare):.1f}", f"{median(ours):.1f}", f"{median(ours) / median(bare):.0%}"]


def throughput(console: Console, n: int, repeats: int) -> None:
    """Table of the servers with a fixed service time, and of the real one if available."""
    table = Table("server", "concurrency", "limit, prompts/s", "ours, prompts/s", "share")
    for seconds, concurrency in ((0.05, 8), (0.2, 8), (0.2, 32)):
        with running(Stub(seconds)) as stub:
            shares = compare(stub.url, n, concurrency, repeats)
        table.add_row(f"stub, {seconds * 1000:.0f} ms", str(concurrency), *shares)
    if find_spec("xllamacpp"):
        server = start(n_parallel=8, n_threads=max(1, (os.cpu_count() or 2) // 2))
        shares = compare(f"{server.listening_address}/v1", 24, 8, repeats, 4, length=4)
        table.add_row("llama.cpp, SmolLM2", "8", *shares)
    console.print(table)


def faults(console: Console, n: int, timeout: float = 1.0) -> None:
    """Table of the outcomes of prompts with a server that has all usual faults.

    Args:
        console: Where it is printed.
        n: Prompts in each of three rounds.
        timeout: Seconds after which the client gives a request up; a slow reply takes twice that.
    """
    table = Table(
        "prompts", "answered", "lost", "asked again", "requests", "s", "held, MB", "RSS, MB"
    )
    server = Stub(0.02, fault_share=0.1, slow_seconds=2 * timeout)
    with TemporaryDirectory() as folder, running(server) as stub:
        model = OpenAILanguageModel("m", stub.url, concurrency=16, timeout=timeout, max_retries=12)
        llm = CachedLanguageModel(model, ReplyCache(Path(folder)))
        tracemalloc.start()
        rows = []
        for _ in range(3):
            prompts = prompts_of(n)
            started = perf_counter()
            replies = llm.generate(prompts)
            seconds = perf_counter() - started
            right = sum(map(eq, replies, (prompt[::-1] for prompt in prompts)))
            del replies, prompts
            held = tracemalloc.get_traced_memory()[0]
            rss = psutil.Process().memory_info().rss
            rows.append(
                [n, right, n - right, "", "", f"{seconds:.0f}"]
                + [f"{n_bytes / 1e6:.2f}" for n_bytes in (held, rss)]
            )
        tracemalloc.stop()
        llm.close()
    met = stub.counts
    rows[-1][3:5] = met["asked again"], sum(met.get(fault, 0) for fault in (*FAULTS, "none"))
    for row in rows:
        table.add_row(*map(str, row))
    console.print(table)
    console.print("met: " + ", ".join(f"{met.get(fault, 0)} {fault}" for fault in FAULTS))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=800, help="prompts per measurement")
    parser.add_argument("--n-faulty", type=int, default=1000, help="prompts past the faults")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    os.environ["NO_PROXY"] = "127.0.0.1"
    console = Console()
    throughput(console, given.n, given.repeats)
    faults(console, given.n_faulty)


if __name__ == "__main__":
    main()
