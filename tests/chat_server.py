"""A small OpenAI-compatible server on loopback that can be made to fail."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Answers a prompt by its last word; ``faults`` are played first, one a request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[str] = []
        self.seen: list[dict] = []
        self.under_way = self.most_at_once = 0
        self.lock = threading.Lock()

    def handle_error(self, request, client_address):
        """Cut connections are part of the test."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        """Be quiet."""

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.seen.append(body)
            fault = server.faults.pop(0) if server.faults else ""
            server.under_way += 1
            server.most_at_once = max(server.most_at_once, server.under_way)
        time.sleep(1.0 if fault == "slow" else 0.02)
        with server.lock:
            server.under_way -= 1
        word = body["messages"][0]["content"].split()[-1]
        content = "" if fault == "empty" else f"1. {word}"
        reply = json.dumps(
            {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": "m",
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "stop",
                        "message": {"role": "assistant", "content": content},
                    }
                ],
                "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
            }
        )
        if fault == "cut":
            self.connection.close()
            return
        self.send_response(int(fault) if fault.isdigit() else 200)
        if fault == "429":
            self.send_header("Retry-After", "0.1")
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write((reply[:40] if fault == "malformed" else reply).encode())
