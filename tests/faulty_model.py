"""A language model that writes down what it is paid for, and faults that strike at a moment."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from hashlib import sha256
from pathlib import Path

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from rpp.cli import run
from rpp.llms.base import LanguageModel
from rpp.types import LanguageModelError

PAID = Path("paid.txt")
"""A line for each prompt answered, by the hash that decides the answer."""


class Paid(LanguageModel):
    """Ranks by a hash of the prompt.

    Args:
        fault: ``killed``: the process dies; ``gone``: no call is answered any more.
        at: Before the batch of this number, from 1.
    """

    fingerprint = "paid"

    def __init__(self, fault: str = "", at: int = 0) -> None:
        self.fault = fault
        self.at = at
        self.n_batches = 0

    def generate(self, prompts):
        self.n_batches += 1
        if self.fault and self.n_batches >= self.at:
            if self.fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise LanguageModelError("the server is gone")
        hashes = [sha256(prompt.encode()).hexdigest() for prompt in prompts]
        with PAID.open("a") as file:
            file.writelines(f"{each}\n" for each in hashes)
        return [_reply(*each) for each in zip(prompts, hashes, strict=True)]


def _reply(prompt: str, hash_: str) -> str:
    """The candidates in an order the hash decides."""
    titles = re.findall(r"^[A-J]\W+(.+)$", prompt, flags=re.MULTILINE)
    return "\n".join(sorted(titles, key=lambda title: sha256((hash_ + title).encode()).digest()))


def spoiled_writing(fault: str, at: int):
    """The writing of checkpoints; that of a number, from 1, ends half way."""
    whole = TorchCheckpointIO.save_checkpoint
    written = []

    def save(self, checkpoint, path, storage_options=None):
        written.append(path)
        if len(written) < at:
            return whole(self, checkpoint, path, storage_options)
        whole(self, checkpoint, path, storage_options)
        os.truncate(path, Path(path).stat().st_size // 2)
        if fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, "No space left on device")

    return save


def main() -> None:
    """A fit in a process that can be killed: where, at, and the command line."""
    where, at, *options = sys.argv[1:]
    sys.argv = ["train.py"]
    if where == "writing":
        TorchCheckpointIO.save_checkpoint = spoiled_writing("killed", int(at))
    run(options)


if __name__ == "__main__":
    main()
