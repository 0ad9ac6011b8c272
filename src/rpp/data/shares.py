"""Batches of users that do not depend on the number of processes, and each process's share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from torch.utils.data import DistributedSampler

from rpp.types import InputError

Rows = TypeVar("Rows", bound=Sequence[Any])


def share(rows: Rows, rank: int, n_processes: int) -> Rows:
    """The contiguous share of one process.

    If the rows do not divide evenly, the first processes have one row more.

    Args:
        rows: The rows to divide.
        rank: Rank of the process, from 0.
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
    """Row numbers of this process's share of every batch.

    All processes play each batch together and have the same number of batches. A last batch with
    fewer users than processes is merged with the one before it.

    Lightning does not replace a batch sampler of this kind and calls its ``set_epoch``, so that a
    resumed run has the same order.

    Args:
        n_rows: Number of rows.
        batch_size: Rows per batch, over all processes.
        shuffle: Draw a new order in every epoch.
        seed: Of that order.
        rank: Rank of this process, from 0.
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
        share(range(min(n_rows, batch_size)), rank, n_processes)  # checked early
        starts = list(range(0, n_rows, batch_size))
        if len(starts) > 1 and n_rows - starts[-1] < n_processes:
            starts.pop()
        self.bounds = [*zip(starts, [*starts[1:], n_rows], strict=True)]
        self.part = rank, n_processes

    def __iter__(self) -> Iterator[list[int]]:
        """This process's share of every batch of the epoch."""
        order: list[Any] = list(super().__iter__())
        for start, end in self.bounds:
            yield share(order[start:end], *self.part)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.bounds)
