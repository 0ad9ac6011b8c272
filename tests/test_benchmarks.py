"""The benchmarks at a tiny size: the rows are there, and fast ways rank like plain ones."""

from __future__ import annotations

import sys
import time

import numpy as np
import torch

from benchmarks import environment
from rpp.data.episodes import load_episodes


def test_fast_ways_rank_like_the_plain_one(prepared_folder, tiny_llm_folder, monkeypatch):
    monkeypatch.setattr(environment, "NEW_TOKENS", 8)
    monkeypatch.setitem(sys.modules, "xllamacpp", None)  # as if it were not installed
    episodes = load_episodes(prepared_folder, "train", 3)
    bench = environment.Benchmark(episodes, 1, 3, str(tiny_llm_folder))
    environment.run(bench, None)
    compared = [row for row in bench.rows if row.agrees is not None]
    assert {row.agrees for row in compared} == {1.0}
    assert {row.way[:3] for row in compared} == {"(b)", "(c)", "(d)", "(e)", "(f)"}
    cells = bench.rows[0].cells(plain=bench.rows[0].seconds / 3, limit=1e-3)
    assert len(cells) == len(environment.COLUMNS)
    assert cells[6] == "1.0"


def test_rate_is_of_this_machine():
    assert 1e8 < environment.matrix_rate(torch.float32, 256) < 1e15


def test_peak_memory_sees_what_is_gone_again():
    with environment.peak_memory() as before:
        pass
    with environment.peak_memory() as peak:
        block = np.ones(40_000_000)  # 0.32 GB
        latest = time.monotonic() + 30  # a busy machine may not let the watch look at once
        while peak[0] <= before[0] + 0.25 and time.monotonic() < latest:
            time.sleep(0.01)
        del block
    assert peak[0] > before[0] + 0.25
