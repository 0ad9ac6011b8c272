"""What several learner processes tell each other.

Each plays its part of every batch of users (``rpp.data.shares``); what depends on the whole batch
is put together here. All processes have to make the same calls in the same order. A process that
is alone gets back what it gave.
"""

from __future__ import annotations

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


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sums over the processes, entry by entry."""
    if is_single_process():
        return values
    total = values.detach().clone()
    distributed.all_reduce(total)
    return total


def all_reduce_mean(values: Tensor, n: int) -> Tensor:
    """Means over what all processes have, from each one's own.

    Args:
        values: Means over what this process has; any shape, finite.
        n: How many it has; 0 leaves it out.

    Returns:
        The same shape; 0 if no process has any.
    """
    if is_single_process():
        return values
    total = all_reduce_sum(torch.cat([values.detach().flatten() * n, values.new_tensor([n])]))
    return (total[:-1] / total[-1].clamp(min=1)).view_as(values)


def average_gradients(parameters: Iterable[torch.nn.Parameter], n: int) -> None:
    """Make the gradients of each process's mean loss those of the mean over all processes.

    Args:
        parameters: The same ones have a gradient in every process.
        n: Entries of this process's mean.
    """
    if is_single_process():
        return
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    averaged = all_reduce_mean(torch.cat([grad.flatten() for grad in grads]), n)
    for grad, part in zip(grads, averaged.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes, those of the first one first; numbers of rows may differ."""
    if is_single_process():
        return rows
    return torch.cat(gather_all_tensors(rows.to(_device()))).to(rows.device)


def gather(own: Any) -> list[Any]:
    """What each process has, the first one's first; it travels as JSON."""
    if is_single_process():
        return [own]
    text = torch.frombuffer(bytearray(json.dumps(own).encode()), dtype=torch.uint8)
    return [json.loads(bytes(part.tolist())) for part in gather_all_tensors(text.to(_device()))]


def ask_together(ask: Callable[[], Result]) -> Result:
    """Ask a language model in every process; if one gets no answer, none goes on.

    Otherwise the others would wait for it without end.

    Raises:
        InputError: What one of the processes met.
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
"""What processes tell each other of, each kind before those that are graver or more special."""


def _gravity(error: Exception) -> int:
    """The place of an error's kind; a kind that is not named counts as the first."""
    return max((place for place, kind in enumerate(_KINDS) if isinstance(error, kind)), default=0)


def _device() -> torch.device:
    """Where tensors must lie to travel."""
    if distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
