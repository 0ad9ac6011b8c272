"""What learner processes tell each other: sums, means, gradients and rows by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

from rpp.processes import (
    all_reduce_mean,
    all_reduce_sum,
    ask_together,
    average_gradients,
    gather,
    gather_rows,
    is_single_process,
)
from rpp.types import InputError, LanguageModelError, LanguageModelStop

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*use of fork:DeprecationWarning"  # from Python 3.12; the forks start no thread pool
)

MEANS = ([1.0, 4.0], [5.0, 10.0])
"""Of each process, over 3 users of the first and 1 of the second."""

ROWS = ([[0, 1]], [[2, 3], [4, 5], [6, 7]])
"""Of each process: one row of the first, three of the second."""


def fail(error):
    if error is not None:
        raise error
    return "an answer"


def errors_of(rank, *errors):
    """What a process meets when each process meets an error of its own."""
    try:
        return ["answered", ask_together(lambda: fail(errors[rank]))]
    except Exception as caught:
        return [type(caught).__name__, str(caught)]


def play(rank: int) -> dict[str, object]:
    """All that one of two processes is told."""
    mean = torch.tensor(MEANS[rank])
    layer = torch.nn.Linear(2, 1)
    frozen = torch.nn.Parameter(torch.zeros(3))
    layer.weight.grad, layer.bias.grad = mean[None].clone(), torch.tensor([float(rank)])
    average_gradients([layer.weight, frozen, layer.bias], (3, 1)[rank])
    stop, bad = LanguageModelStop("spent"), InputError("no such model")
    return {
        "alone": is_single_process(),
        "sum": all_reduce_sum(mean).tolist(),
        "mean": all_reduce_mean(mean, (3, 1)[rank]).tolist(),
        "mean of one": all_reduce_mean(mean, (0, 2)[rank]).tolist(),
        "mean of none": all_reduce_mean(mean, 0).tolist(),
        "shape": list(all_reduce_mean(torch.ones(2, 3), 1).shape),
        "own": mean.tolist(),
        "weight": layer.weight.grad.tolist(),
        "bias": layer.bias.grad.tolist(),
        "frozen": frozen.grad,
        "rows": gather_rows(torch.tensor(ROWS[rank])).tolist(),
        "said": gather({"rank": rank, "text": "七" * (rank + 1)}),
        "answered": errors_of(rank, None, None),
        "one lost": errors_of(rank, None, LanguageModelError("connection lost")),
        "graver": errors_of(rank, stop, LanguageModelError("connection lost")),
        "gravest": errors_of(rank, stop, bad),
        "unforeseen": errors_of(rank, KeyError("k"), None),
    }


def play_in(rank: int, folder: Path) -> None:
    """Be one of two processes, and write down what it is told."""
    store = distributed.FileStore(str(folder / "store"), 2)
    distributed.init_process_group("gloo", rank=rank, world_size=2, store=store)
    (folder / f"{rank}.json").write_text(json.dumps(play(rank)))
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What each of two processes was told."""
    folder = tmp_path_factory.mktemp("told")
    # forks have all that is imported here
    multiprocessing.start_processes(play_in, args=(folder,), nprocs=2, start_method="fork")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def both(told, name):
    """What both processes were told alike."""
    first, second = (each[name] for each in told)
    assert first == second
    return first


def test_sums_by_hand(told):
    assert both(told, "alone") is False
    assert both(told, "sum") == [1 + 5, 4 + 10]
    assert [each["own"] for each in told] == list(MEANS)  # what is given stays as it is


def test_means_weigh_each_process_by_what_it_has(told):
    assert both(told, "mean") == [(3 * 1 + 1 * 5) / 4, (3 * 4 + 1 * 10) / 4]
    assert both(told, "mean of one") == list(MEANS[1])
    assert both(told, "mean of none") == [0, 0]
    assert both(told, "shape") == [2, 3]


def test_gradients_are_those_of_the_mean_over_all_users(told):
    assert both(told, "weight") == [[(3 * 1 + 1 * 5) / 4, (3 * 4 + 1 * 10) / 4]]
    assert both(told, "bias") == [(3 * 0 + 1 * 1) / 4]
    assert both(told, "frozen") is None


def test_rows_of_uneven_processes_stand_one_below_the_other(told):
    assert both(told, "rows") == [*ROWS[0], *ROWS[1]]
    assert both(told, "said") == [{"rank": 0, "text": "七"}, {"rank": 1, "text": "七七"}]


def test_an_error_of_one_process_ends_all_and_the_graver_one_counts(told):
    assert both(told, "answered") == ["answered", "an answer"]
    assert both(told, "one lost") == ["LanguageModelError", "connection lost"]
    assert both(told, "graver") == ["LanguageModelStop", "spent"]
    assert both(told, "gravest") == ["InputError", "no such model"]
    assert both(told, "unforeseen") == ["RuntimeError", "'k'"]


def test_a_process_that_is_alone_gets_back_what_it_gave():
    values = torch.tensor([1.0, 2.0])
    parameter = torch.nn.Parameter(values.clone())
    parameter.grad = values.clone()
    average_gradients([parameter], 0)
    assert is_single_process()
    assert all_reduce_sum(values) is values
    assert all_reduce_mean(values, 0) is values
    assert gather_rows(values) is values
    assert gather("x") == ["x"]
    assert parameter.grad.tolist() == [1, 2]
    with pytest.raises(KeyError):
        ask_together(lambda: fail(KeyError("k")))
