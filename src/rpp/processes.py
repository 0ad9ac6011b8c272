"""Collective operations of several learner processes.

Each process plays its share of every batch of users (``rpp.data.shares``); quantities of the whole
batch are reduced or gathered here. All processes have to make the same calls in the same order.
With a single process every operation returns its input.
"""

from __future__ import annotations

import atexit
import json
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torchmetrics.utilities.distributed import gather_all_tensors

from rpp.types import InputError, LanguageModelError, LanguageModelStop

Result = TypeVar("Result")


def is_single_process() -> bool:
    """Whether this is the only learner process."""
    together = distributed.is_available() and distributed.is_initialized()
    return not together or distributed.get_world_size() == 1


def leave_at_exit() -> None:
    """Destroy the process group when the process ends.

    Threads of gloo that outlive the interpreter abort the process: exit code -6 after a good run.
    Lightning itself does this for nccl.
    """
    if not is_single_process() and distributed.get_backend() != "nccl":
        atexit.unregister(_destroy)  # a process may hold several runs
        atexit.register(_destroy)


def _destroy() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def all_reduce_sum(values: Tensor) -> Tensor:
    """Elementwise sums over the processes."""
    if is_single_process():
        return values
    total = values.detach().to(_device(), copy=True)
    distributed.all_reduce(total)
    return total.to(values.device)


def all_reduce_mean(values: Tensor, n: int) -> Tensor:
    """Means over the entries of all processes, from the mean of each process.

    Args:
        values: Means over the entries of this process; any shape, finite.
        n: Number of these entries; 0 leaves the process out.

    Returns:
        The same shape; 0 if no process has any entries.
    """
    if is_single_process():
        return values
    total = all_reduce_sum(torch.cat([values.detach().flatten() * n, values.new_tensor([n])]))
    return (total[:-1] / total[-1].clamp(min=1)).view_as(values)


def average_gradients(parameters: Iterable[torch.nn.Parameter], n: int) -> None:
    """Average gradients over processes, weighted by their numbers of entries.

    Args:
        parameters: The same parameters have a gradient in every process.
        n: Number of entries in the mean loss of this process.
    """
    if is_single_process():
        return
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    averaged = all_reduce_mean(torch.cat([grad.flatten() for grad in grads]), n)
    for grad, part in zip(grads, averaged.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes, in order of rank; the numbers of rows may differ."""
    if is_single_process():
        return rows
    return torch.cat(gather_all_tensors(rows.to(_device()))).to(rows.device)


def gather(own: Any) -> list[Any]:
    """The objects of all processes, in order of rank; they are sent as JSON."""
    if is_single_process():
        return [own]
    text = torch.frombuffer(bytearray(json.dumps(own).encode()), dtype=torch.uint8)
    return [json.loads(bytes(part.tolist())) for part in gather_all_tensors(text.to(_device()))]


def ask_together(ask: Callable[[], Result]) -> Result:
    """Ask a language model in every process; if one gets no answer, all stop.

    Otherwise the others would wait for it forever.

    Raises:
        InputError: The error of one of the processes.
        LanguageModelError: Likewise, a :class:`LanguageModelStop` first.
    """
    if is_single_process():
        return ask()
    error: Exception | None = None
    try:
        answer = ask()
    except Exception as caught:
        error = caught
    own = None if error is None else [_gravity(error), str(error)]
    met = [each for each in gather(own) if each is not None]
    if met:
        gravity, message = max(met)
        raise _KINDS[gravity](message) from error
    return answer


_KINDS = (RuntimeError, LanguageModelError, LanguageModelStop, InputError)
"""Errors shared between processes, more severe or more specific kinds later."""


def _gravity(error: Exception) -> int:
    """Index of an error's kind; an unlisted kind counts as the first."""
    return max((place for place, kind in enumerate(_KINDS) if isinstance(error, kind)), default=0)


def _device() -> torch.device:
    """The device from which tensors can be sent."""
    if distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
