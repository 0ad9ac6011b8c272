"""How the tests are run; what they share is in ``shared_fixtures.py``."""

from __future__ import annotations

import gc
import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: no network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tests fork
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of xdist's workers and of processes in tests
pytest.register_assert_rewrite("contracts", "two_processes", "shared_fixtures")

LONGEST = (
    *("test_comparison", "test_overlays", "test_later_state", "test_real_server", "test_ddp"),
    *("test_faults", "test_cli_checkpoints", "test_tuning", "test_sweep", "test_real"),
)
"""Files that take longest: they are begun first, so that no process waits for one at the end."""


def pytest_configure(config: pytest.Config) -> None:
    """Load the fixtures in the processes that run tests; the one that hands them out needs none."""
    shares_out = config.getoption("dist", "no") != "no" and config.getoption("tx", None)
    if not shares_out or hasattr(config, "workerinput") or config.getoption("collectonly"):
        config.pluginmanager.import_plugin("shared_fixtures")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what the libraries have made: it takes long."""
    gc.freeze()
