"""Windows that sequence models train on."""

import numpy as np
import pytest
import torch

from rpp.baselines.windows import PAD, WindowBatches, cut_windows
from rpp.types import InputError


def test_windows_predict_everything_but_the_first_once():
    users = np.repeat([0, 1, 2, 4], [13, 2, 1, 5])
    for seed in range(20):
        begins, lengths = cut_windows(users, 4, np.random.default_rng(seed))
        assert lengths.min() >= 2
        assert lengths.max() <= 5
        predicted = []
        for begin, length in zip(begins, lengths, strict=True):
            window = np.arange(begin, begin + length)
            assert len(set(users[window])) == 1
            predicted += window[1:].tolist()
        firsts = {0, 13, 15, 16}
        assert sorted(predicted) == [k for k in range(21) if k not in firsts]
        assert 5 in lengths[users[begins] == 4]  # a sequence that fits is not cut


def test_sequences_of_one_item_teach_nothing():
    with pytest.raises(InputError, match="no user has two training interactions"):
        WindowBatches([(np.arange(5), np.arange(5))])


def test_cuts_differ_from_one_epoch_to_the_next():
    rng = np.random.default_rng(0)
    users = np.zeros(100, dtype=np.int64)
    assert len({tuple(cut_windows(users, 10, rng)[0]) for _ in range(10)}) > 1


def test_batches_hold_everything_and_repeat_themselves():
    rng = np.random.default_rng(1)
    users = np.sort(rng.integers(30, size=400))
    items = rng.integers(1000, size=400)
    runs = [list(WindowBatches([(users, items)], 10, 64, seed=5)) for _ in "12"]
    assert all(torch.equal(one, two) for one, two in zip(*runs, strict=True))
    batches = WindowBatches([(users, items)], 10, 64, seed=5)
    first, second = list(batches), list(batches)
    assert len(first) == len(second) == len(batches) == round(370 / 64)
    assert not all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    for epoch in (first, second):
        targets = sorted(t for batch in epoch for t in batch[:, 1:].flatten().tolist() if t != PAD)
        assert targets == sorted(items[np.flatnonzero(np.diff(users, prepend=-1) == 0)].tolist())


def test_a_large_source_does_not_drown_a_small_one():
    large = np.repeat(np.arange(300), 5), np.arange(1500)
    small = np.repeat(np.arange(20), 5), np.arange(5000, 5100)
    batches = WindowBatches([large, small], 10, 64, max_windows=30)
    seen = torch.cat([batch.flatten() for batch in batches])
    assert (seen >= 5000).sum() == 100
    assert ((seen >= 0) & (seen < 5000)).sum() == 150
