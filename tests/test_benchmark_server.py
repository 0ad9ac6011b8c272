"""The benchmark of servers at a tiny size: what was asked arrives, faults are met and counted."""

from __future__ import annotations

import tracemalloc
from io import StringIO

import pytest
from rich.console import Console

from benchmarks import server
from benchmarks.stub_server import FAULTS, Stub, running


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch, no_key):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_the_share_is_the_ratio_of_the_two_rates():
    with running(Stub(0.01)) as stub:
        bare, ours, share = server.compare(stub.url, 8, 4, repeats=1)
    assert 0 < float(bare) <= 4 / 0.01  # four at once, a hundredth of a second each
    assert 0 < float(ours) <= 4 / 0.01
    assert float(share.strip("%")) / 100 == pytest.approx(float(ours) / float(bare), abs=0.02)
    # both asked for all, and 4 prompts came before the measurement
    assert stub.counts == {"none": 8 + 8 + 4, "asked again": 0, "answered": 8 + 8 + 4}


def test_faults_are_met_and_every_prompt_is_counted_once(monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.02)
    printed = StringIO()
    server.faults(Console(file=printed, width=200), 20, timeout=0.2)
    assert not tracemalloc.is_tracing()  # it once went on, and made all that came after slow
    lines = printed.getvalue().splitlines()
    rows = [[c.strip() for c in line.strip("│").split("│")] for line in lines if "│" in line]
    assert [row[0] for row in rows] == ["20"] * 3
    for n, answered, lost, *_ in rows:
        assert int(answered) + int(lost) == int(n)
    met = dict(reversed(word.split()) for word in lines[-1].removeprefix("met: ").split(", "))
    assert list(met) == list(FAULTS)
    n_requests = int(rows[-1][4])
    n_answered = sum(int(row[1]) for row in rows)
    assert n_requests >= n_answered + sum(map(int, met.values()))
    assert sum(map(int, met.values())) > 0
