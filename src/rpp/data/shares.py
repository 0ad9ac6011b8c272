"""Batches of users, the same for any number of learner processes, and each one's part of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from torch.utils.data import DistributedSampler

from rpp.types import InputError

Rows = TypeVar("Rows", bound=Sequence[Any])


def share(rows: Rows, rank: int, n_processes: int) -> Rows:
    """One process's part: neighbours, so that the parts in the order of the processes are the rows.

    The first processes have one row more where they do not divide evenly.

    Args:
        rows: What is shared.
        rank: Number of the process, from 0.
        n_processes: Number of processes.

    Raises:
        InputError: If a process would have nothing to do.
    """
    if n_processes > 1 and len(rows) < n_processes:
        raise InputError(
            f"{len(rows)} users cannot be shared by {n_processes} processes: lower trainer.devices,"
            " or raise data.batch_size and the number of users"
        )
    size, n_longer = divmod(len(rows), n_processes)
    start = rank * size + min(rank, n_longer)
    return rows[start : start + size + (rank < n_longer)]  # type: ignore[return-value]


class SharedBatches(DistributedSampler[list[int]]):
    """Row numbers of this process's part of every batch.

    A batch is what all processes play together, and all of them meet equally many. Should the last
    one have fewer users than there are processes, it joins the one before.

    Lightning leaves a sampler of this kind as it is, and of all samplers tells it the epoch, so
    that a resumed run has the same order.

    Args:
        n_rows: Number of rows.
        batch_size: Rows in a batch, of all processes together.
        shuffle: Draw the order anew every epoch.
        seed: Of that order.
        rank: Number of this process, from 0.
        n_processes: Number of processes.

    Raises:
        InputError: If a process would have nothing to do.
    """

    def __init__(
        self,
        n_rows: int,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        n_processes: int = 1,
    ) -> None:
        super().__init__(range(n_rows), num_replicas=1, rank=0, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        share(range(min(n_rows, batch_size)), rank, n_processes)  # or say now that it cannot be
        starts = list(range(0, n_rows, batch_size))
        if len(starts) > 1 and n_rows - starts[-1] < n_processes:
            starts.pop()
        self.bounds = [*zip(starts, [*starts[1:], n_rows], strict=True)]
        self.part = rank, n_processes

    def __iter__(self) -> Iterator[list[int]]:
        """This process's part of every batch of the epoch."""
        order: list[Any] = list(super().__iter__())
        for start, end in self.bounds:
            yield share(order[start:end], *self.part)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.bounds)
