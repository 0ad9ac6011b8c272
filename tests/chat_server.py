"""A small OpenAI-compatible server on loopback that can be made to fail."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("slow", "429", "500", "cut", "malformed", "empty")
"""What may happen to a request that will be answered when it is repeated."""


class Server(ThreadingHTTPServer):
    """Answers a prompt by its last word.

    ``faults`` are played first, one a request; ``shares`` gives the share of each fault among the
    requests after them. ``answered`` and ``asked_again`` count prompts: answers sent whole and in
    time, and requests for what had been answered so.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[str] = []
        self.shares: dict[str, float] = {}
        self.rng = random.Random(0)
        self.seen: list[dict] = []
        self.keys: set[str] = set()
        self.times: list[float] = []
        self.answered = Counter()
        self.asked_again = Counter()
        self.under_way = self.most_at_once = 0
        self.seconds, self.slow_seconds, self.retry_after = 0.02, 1.0, "0.1"
        self.n_expected, self.was_last = 0, False
        self.error: dict = {}
        self.counts_tokens = True
        self.finish_reason = "stop"
        self.first_tokens: list[tuple[str, float]] | None = None
        self.says: tuple[int, str, str] | None = None  # status, body, content type
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def next_fault(self) -> str:
        if self.faults:
            return self.faults.pop(0)
        at = self.rng.random()
        for fault, share in self.shares.items():
            at -= share
            if at < 0:
                return fault
        return ""

    def wait_for_others(self) -> bool:
        """Wait until as many calls have come as are expected; whether they did in half a minute."""
        latest = time.monotonic() + 30
        while len(self.times) < self.n_expected and time.monotonic() < latest:
            time.sleep(0.01)
        return len(self.times) >= self.n_expected

    def handle_error(self, request, client_address):
        """Cut connections are part of the test."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        """Be quiet."""

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        with server.lock:
            server.seen.append(body)
            server.keys.add(self.headers["Authorization"])
            server.times.append(time.monotonic())
            server.asked_again[prompt] += server.answered[prompt] > 0
            fault = server.next_fault()
            server.under_way += 1
            server.most_at_once = max(server.most_at_once, server.under_way)
        if fault == "last":
            server.was_last = server.wait_for_others()
        else:
            time.sleep(server.slow_seconds if fault == "slow" else server.seconds)
        with server.lock:
            server.under_way -= 1
            server.answered[prompt] += fault == ""
        if fault == "cut":
            self.close_connection = True
            return
        if server.says is not None:
            self.reply(*server.says)
            return
        if fault.isdigit():
            said = {"message": f"no: {self.headers['Authorization']}", **server.error}
            self.reply(int(fault), json.dumps({"error": said}))
            return
        text = json.dumps(self.completion(body, "" if fault == "empty" else prompt.split()[-1]))
        self.reply(200, text[:40] if fault == "malformed" else text)

    def completion(self, body, word):
        choice = {
            "index": 0,
            "finish_reason": self.server.finish_reason,
            "message": {"role": "assistant", "content": word and f"1. {word}"},
        }
        if body.get("logprobs") and self.server.first_tokens is not None:
            top = [
                {"token": token, "logprob": value, "bytes": None}
                for token, value in self.server.first_tokens[: body["top_logprobs"]]
            ]
            choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}] if top else []}
        made = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
        made["choices"] = [choice]
        if self.server.counts_tokens:
            made["usage"] = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        return made

    def reply(self, status, text, kind="application/json"):
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", self.server.retry_after)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())
