"""A stub chat server: it waits for a fixed time and replies, or fails on purpose.

It runs in its own process, so that it does not share a client's interpreter.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

FAULTS = ("slow", "429", "500", "cut", "malformed", "empty")


@dataclass
class Stub:
    """One server.

    Args:
        seconds: Service time.
        fault_share: Share of requests that meet each of :data:`FAULTS`.
        slow_seconds: Service time of a slow reply, beyond the client's timeout.
    """

    seconds: float
    fault_share: float = 0.0
    slow_seconds: float = 2.0
    counts: Counter[str] = field(default_factory=Counter)
    answered: set[str] = field(default_factory=set)
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection until it ends."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                size = int(head.partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
                if not await self.answer(json.loads(await reader.readexactly(size)), writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def answer(
        self, body: dict[str, list[dict[str, str]]], out: asyncio.StreamWriter
    ) -> bool:
        """Answer one request; whether the connection may stay."""
        prompt = body["messages"][0]["content"]
        number = int(self.rng.random() / self.fault_share) if self.fault_share else len(FAULTS)
        fault = FAULTS[number] if number < len(FAULTS) else "none"
        self.counts[fault] += 1
        self.counts["asked again"] += prompt in self.answered
        await asyncio.sleep(self.slow_seconds if fault == "slow" else self.seconds)
        if fault == "cut":
            return False
        if fault == "none":
            self.answered.add(prompt)
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "" if fault == "empty" else prompt[::-1]},
        }
        text = json.dumps(
            {
                **{"id": "x", "object": "chat.completion", "created": 0, "model": "m"},
                "choices": [choice],
                "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
            }
        )
        status = f"{fault} Fault\r\nretry-after: 0.2" if fault.isdigit() else "200 OK"
        content = (text[:60] if fault == "malformed" else text).encode()
        out.write(
            f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\n\r\n".encode()
            + content
        )
        await out.drain()
        return True

    async def serve(self, pipe: Connection) -> None:
        """Send the port, serve until a message arrives, send the counts."""
        server = await asyncio.start_server(self.talk, "127.0.0.1", 0, backlog=1000)
        pipe.send(server.sockets[0].getsockname()[1])
        while not pipe.poll():
            await asyncio.sleep(0.1)
        pipe.recv()
        pipe.send({**self.counts, "answered": len(self.answered)})


def _run(pipe: Connection, stub: Stub) -> None:
    asyncio.run(stub.serve(pipe))


@dataclass
class Running:
    """A running stub.

    Attributes:
        url: Its address.
        counts: Requests by fault, answered prompts, requests for answered prompts; known after the
            server has stopped.
    """

    url: str
    counts: dict[str, int]


@contextmanager
def running(stub: Stub) -> Iterator[Running]:
    """Serve in another process."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(theirs, stub))
    process.start()
    try:
        known = Running(f"http://127.0.0.1:{ours.recv()}/v1", {})
        yield known
        ours.send("stop")
        known.counts.update(ours.recv())
    finally:
        process.terminate()
        process.join()
