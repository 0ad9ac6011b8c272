"""Starts a file twice, as two learner processes on this computer."""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def run_two(file: str, *arguments: str) -> list[str]:
    """Run a file in two processes that find each other; what each has printed.

    The environment has what Lightning and ``torch.distributed`` look for; ``LOCAL_RANK`` tells
    the processes apart.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    settings = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    running = [
        subprocess.Popen(
            [sys.executable, file, *arguments],
            env=os.environ | settings | {"LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        printed = [process.communicate(timeout=120)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
            process.stdout.close()
    for process, text in zip(running, printed, strict=True):
        assert process.returncode == 0, text
    return printed
