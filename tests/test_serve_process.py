"""The whole server, as ``python -m rpp.serve`` starts it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter

import httpx2
import pytest
from cli_setup import ROOT, command

from benchmarks.serve import REFUSED, ask, serving, stopped
from rpp.cli import main
from rpp.serve import main as serve
from rpp.types import InputError


@pytest.fixture
def fitted(here, monkeypatch):
    """The working folder with a checkpoint; programs started from it find the project."""
    main(command("fit", "--trainer.max_epochs", "1"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT)]))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return here


CONFIG = ["--config=conf/rpp.yaml", "--config=small.yaml"]
BODIES = [{"history": ["i1"], "candidates": [f"i{k}", f"i{k + 1}"]} for k in range(2, 42)]


@pytest.mark.slow
def test_requests_under_way_are_answered_before_it_stops(fitted):
    """SIGTERM once ended the process at once, and left its workers behind."""
    instant = "--environment.llm=benchmarks.serve.Instant"
    met, n_ranked = stopped([*CONFIG, instant], BODIES, 0.8)
    assert met.keys() <= {"200", REFUSED}
    assert 16 <= met["200"] < len(BODIES)
    assert n_ranked == met["200"]
    with serving([*CONFIG, instant, "--environment.llm.every=10"]) as server:
        assert httpx2.get(f"{server.url}/docs").status_code == 200
        wrong = httpx2.post(f"{server.url}/rank", json={"candidates": [1, 2]}, timeout=60)
        assert (wrong.status_code, wrong.json()["detail"][:10]) == (422, "the item 1")
        answers = [status for status, _ in asyncio.run(ask(server.url, BODIES, 8))]
        assert Counter(answers).keys() == {"200", "503"}
        assert len(answers) == len(BODIES)


def test_without_a_checkpoint_it_says_so(here, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["serve"])
    with pytest.raises(InputError, match="there is no checkpoint checkpoints/ml-100k"):
        serve(CONFIG)
