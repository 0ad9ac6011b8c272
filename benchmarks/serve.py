"""Throughput of the server of a policy: ``python -m benchmarks.serve --config conf/rpp.yaml``.

The limit is the ranker by itself, with batches as large as there are clients. The clients are in
this process and the server is as ``python -m rpp.serve`` starts it; no reply is cached. Then what
happens to requests when the server is stopped, and with a language model that fails one prompt in
ten.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from time import perf_counter, sleep
from typing import Any

import httpx2
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from rpp.arguments import remade
from rpp.callbacks.environment import SETTINGS, RewardEnvironment
from rpp.data.directory import Directory
from rpp.llms.base import LanguageModel
from rpp.personaliser import Personaliser
from rpp.recommendation import Query
from rpp.restore import find_checkpoint
from rpp.types import LanguageModelError

REFUSED = "refused"
"""The status of a request that a stopped server did not take."""

START = 300
"""Seconds within which a server must be ready."""


class Instant(LanguageModel):
    """Answers at once, and fails one prompt in ``every``.

    Args:
        every: Every such prompt gets no answer; 0: all do.
        seconds: What a batch takes.
    """

    def __init__(self, every: int = 0, seconds: float = 0.0) -> None:
        super().__init__()
        self.every = every
        self.seconds = seconds
        self.numbers = itertools.count(1)

    @property
    def fingerprint(self) -> str:
        """One name, for nothing is cached."""
        return "instant"

    def generate(self, prompts: Sequence[str]) -> list[str | LanguageModelError]:
        """A list that names nothing."""
        sleep(self.seconds)
        return [
            LanguageModelError("one in ten")
            if self.every and number % self.every == 0
            else "1. something"
            for number, _ in zip(self.numbers, prompts, strict=False)
        ]


INSTANT = [
    "--environment.llm=benchmarks.serve.Instant", "--environment.decoding=generate",
    "--environment.show_candidates=true",
]  # fmt: skip


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        url: Its address.
        process: Its main process.
    """

    url: str
    process: subprocess.Popen[bytes]


@contextmanager
def serving(arguments: Sequence[str]) -> Iterator[Server]:
    """Start a server and stop it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "rpp.serve", *arguments, f"--serve.port={port}"]
    process = subprocess.Popen([*line, "--environment.cache_dir=null"])
    server = Server(f"http://127.0.0.1:{port}", process)
    try:
        until = perf_counter() + START
        while not _is_ready(server.url):
            if process.poll() is not None or perf_counter() > until:
                raise RuntimeError("the server did not start")
            sleep(0.2)
        yield server
    finally:
        process.terminate()
        process.wait(60)


def _is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health", timeout=5).status_code == 200
    except httpx2.TransportError:
        return False


def users(directory: Directory, n: int, seed: int) -> list[dict[str, Any]]:
    """Requests for made-up users: ten candidates, a history of twenty."""
    rng = np.random.default_rng(seed)
    rows = [*directory.title_rows.values()]  # two candidates may not share a title
    drawn = [rng.choice(rows, 30, replace=False).tolist() for _ in range(n)]
    names = [[directory.item_ids[row] for row in own] for own in drawn]
    return [{"history": own[10:], "candidates": own[:10]} for own in names]


async def ask(
    url: str, bodies: Sequence[dict[str, Any]], n_clients: int
) -> list[tuple[str, float]]:
    """Ask with several clients, each of which waits for its answer.

    Returns:
        Status and seconds of every request.
    """
    waiting, met = iter(bodies), []

    async def work(client: httpx2.AsyncClient) -> None:
        for body in waiting:
            started = perf_counter()
            try:
                status = str((await client.post(f"{url}/rank", json=body)).status_code)
            except httpx2.TransportError:  # the server did not take it
                status = REFUSED
            met.append((status, perf_counter() - started))

    limits = httpx2.Limits(max_connections=n_clients)
    async with httpx2.AsyncClient(timeout=600, limits=limits) as client:
        await asyncio.gather(*(work(client) for _ in range(n_clients)))
    return met


def bare(personaliser: Personaliser, bodies: Sequence[dict[str, Any]], size: int) -> float:
    """Users per second of the policy by itself, in batches."""
    queries = [Query(**body) for body in bodies]
    started = perf_counter()
    for start in range(0, len(queries), size):
        personaliser.rank_many(queries[start : start + size])
    return len(queries) / (perf_counter() - started)


def throughput(
    console: Console,
    personaliser: Personaliser,
    arguments: Sequence[str],
    n: int,
    counts: Sequence[int],
    seed: int = 0,
) -> None:
    """Table of the clients: the limit, what the server does, and its latency."""
    table = Table("clients", "limit, users/s", "server, users/s", "share", "p50, s", "p99, s")
    limits = {}
    for k in counts:
        bodies = users(personaliser.directory, min(n, 16 * k), seed + k)
        bare(personaliser, bodies[:1], 1)
        limits[k] = bare(personaliser, bodies, k)
    personaliser.close()
    with serving([*arguments, "--serve.timeout=600"]) as server:
        for k in counts:
            bodies = users(personaliser.directory, min(n, 16 * k), seed + k)
            asyncio.run(ask(server.url, users(personaliser.directory, 1, 1000 + k), 1))
            started = perf_counter()
            met = asyncio.run(ask(server.url, bodies, k))
            rate = len(met) / (perf_counter() - started)
            assert {status for status, _ in met} == {"200"}, met
            seconds = [each for _, each in met]
            shown = quantiles(seconds, n=100)
            table.add_row(
                str(k), f"{limits[k]:.2f}", f"{rate:.2f}", f"{rate / limits[k]:.0%}",
                f"{shown[49]:.3f}", f"{shown[98]:.3f}",
            )  # fmt: skip
    console.print(table)


def overhead(
    console: Console, checkpoint: Path, directory: Directory, arguments: Sequence[str], n: int
) -> None:
    """Milliseconds that a request takes besides policy and language model."""
    bodies = users(directory, n, 10)
    environment = RewardEnvironment(Instant(), cache_dir=None)
    with Personaliser.load(checkpoint, environment) as personaliser:
        bare(personaliser, bodies, 1)
        alone = 1000 / bare(personaliser, bodies, 1)
    with serving([*arguments, *INSTANT]) as server:
        asyncio.run(ask(server.url, bodies, 1))  # encodes their titles, as above
        before = processor_seconds(server)
        seconds = [each for _, each in asyncio.run(ask(server.url, bodies, 1))]
        spent = 1000 * (processor_seconds(server) - before) / n
    shown = [1000 * each for each in quantiles(seconds, n=20)]
    console.print(
        f"one request with an instant language model: {shown[9]:.1f} ms (5 % below {shown[0]:.1f}),"
        f" processor time {spent:.1f} ms; the policy by itself {alone:.1f} ms"
    )


def processor_seconds(server: Server) -> float:
    """Processor time of all processes of a server so far."""
    main_process = psutil.Process(server.process.pid)
    times = [each.cpu_times() for each in [main_process, *main_process.children(recursive=True)]]
    return float(sum(each.user + each.system for each in times))


def losses(console: Console, directory: Directory, arguments: Sequence[str], n: int) -> None:
    """What becomes of requests as the server is stopped, and with a model that fails."""
    met, n_ranked = stopped([*arguments, *INSTANT], users(directory, n, 11), 1.0)
    console.print(f"stopped while 16 clients ask: {met}; rankings made: {n_ranked}")
    with serving([*arguments, *INSTANT, "--environment.llm.every=10"]) as server:
        counts = Counter(s for s, _ in asyncio.run(ask(server.url, users(directory, n, 12), 16)))
    console.print(f"a language model that fails one prompt in ten: {dict(counts)} of {n}")


def stopped(
    arguments: Sequence[str], bodies: Sequence[dict[str, Any]], seconds: float
) -> tuple[dict[str, int], int]:
    """Stop a server while clients ask.

    Returns:
        Requests by status, and the number of rankings the server made: as many have to be
        answered, whatever became of requests that it did not take.
    """

    async def stop(server: Server) -> list[tuple[str, float]]:
        asking = asyncio.create_task(ask(server.url, bodies, 16))
        await asyncio.sleep(seconds)
        os.kill(server.process.pid, signal.SIGTERM)
        return await asking

    with TemporaryDirectory() as folder:
        log = Path(folder, "served.jsonl")
        slow = ["--environment.llm.seconds=0.3", f"--serve.feedback={log}"]
        with serving([*arguments, *slow]) as server:
            met = Counter(status for status, _ in asyncio.run(stop(server)))
            assert server.process.wait(60) == 0
        return dict(met), len(log.read_text(encoding="utf-8").splitlines())


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", action="append", required=True, help="as for rpp.serve")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--n", type=int, default=128, help="users per row at most")
    parser.add_argument("--n-instant", type=int, default=400, help="requests without a model")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 4, 16, 64])
    given = parser.parse_args()
    os.environ["NO_PROXY"] = "127.0.0.1"
    arguments = [f"--config={path}" for path in given.config]
    arguments.append(f"--ckpt_path={given.checkpoint}")
    console = Console()
    settings = find_checkpoint(given.checkpoint)[SETTINGS]
    uncached = remade(settings, RewardEnvironment, cache_dir=None)
    with Personaliser.load(given.checkpoint, uncached) as personaliser:
        directory = personaliser.directory
        if given.clients:
            throughput(console, personaliser, arguments, given.n, given.clients)
        if given.n_instant:
            overhead(console, given.checkpoint, directory, arguments, given.n_instant)
            losses(console, directory, arguments, given.n_instant)


if __name__ == "__main__":
    main()
