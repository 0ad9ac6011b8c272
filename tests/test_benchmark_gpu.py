"""The GPU benchmark with a tiny model on a CPU: every part runs, and none takes another down."""

from __future__ import annotations

import json
import time

import pytest
import torch
from helpers import PEFT

from benchmarks import gpu
from benchmarks.gpu_bench import SMALL_SCALE, Bench, Row, run_part
from benchmarks.gpu_measure import Rates, reading_seconds, watching
from benchmarks.gpu_models import LLAMA2_7B, SMALL, make_network
from benchmarks.gpu_parts import PARTS
from rpp.llms import decoding
from rpp.llms.decoder import Decoder

UNFUSED = pytest.mark.filterwarnings(
    "ignore:flex_attention called without torch.compile:UserWarning"  # compiled on a GPU alone
)
KERNEL = pytest.mark.filterwarnings(
    "ignore:.*autograd kernel was not registered:UserWarning"  # bitsandbytes 0.50 on a CPU
)


@PEFT
@UNFUSED
@KERNEL
def test_every_part_runs_on_a_cpu(tmp_path, capsys):
    pytest.importorskip("bitsandbytes")
    gpu.main(["--small", "--device", "cpu", "--minutes", "2", "--output", str(tmp_path)])
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert {name: part["status"] for name, part in content["parts"].items()} == dict.fromkeys(
        PARTS, "done"
    )
    rows = content["rows"]
    assert {"bfloat16", "float32", "4bit", "8bit", "4bit + LoRA"} <= {r["precision"] for r in rows}
    exact = [row["agrees"] for row in rows if "vs float32" in row["way"]]
    assert len(exact) == 12
    shared = [row for row in rows if row["way"].endswith(", shared")]
    assert [row["n_prompts"] for row in shared] == [45] * 3
    assert all(row["memory"] > 0 and row["limit"] > 0 for row in rows)
    losses = content["notes"]["QLoRA"]["losses"]
    assert losses[-1] < losses[0]
    tree = content["notes"]["attention"]["flex, tree of 64"]
    assert tree["flex, blocks of the tree"]["largest difference"] < 0.1
    lines = (tmp_path / "gpu.md").read_text().splitlines()
    assert len(lines) == 2 + len(rows)
    assert "random weights never end one" in capsys.readouterr().out


@pytest.fixture
def bench(tmp_path):
    return Bench(SMALL_SCALE, torch.device("cpu"), tmp_path)


def test_a_part_that_fails_or_hangs_is_reported_and_the_next_one_runs(bench, tmp_path, monkeypatch):
    def fails(_):
        raise ValueError("no such kernel\nat all")

    ran = []
    parts = {
        "fails": (1, fails), "hangs": (1, lambda _: time.sleep(20)), "runs": (1, ran.append),
    }  # fmt: skip
    monkeypatch.setattr(gpu, "PARTS", parts)
    started = time.monotonic()
    status = run_part(bench, "hangs", parts["hangs"][1], 0.1, 0.3)["status"]
    assert status == "failed: TimeoutError: stopped after 0 s"
    assert time.monotonic() - started < 10
    done = gpu.run(bench, ["fails", "runs"], 1.0, tmp_path)
    assert done["fails"]["status"] == "failed: ValueError: no such kernel"
    assert ran == [bench]
    assert json.loads((tmp_path / "gpu.json").read_text())["parts"].keys() == {"fails", "runs"}


def test_a_part_that_does_not_fit_into_the_time_left_is_skipped(bench, capsys):
    assert run_part(bench, "slow", pytest.fail, needs=90, left=60)["status"] == "skipped"
    assert "slow: skipped, 90 s do not fit into the 60 s left" in capsys.readouterr().out


def test_the_large_model_has_the_shape_of_llama_2_7b():
    with torch.device("meta"):
        network = make_network(LLAMA2_7B, torch.device("meta"), torch.bfloat16)
    assert sum(weight.numel() for weight in network.parameters()) == 6_738_415_616
    maps = [weight for weight in network.model.layers.parameters() if weight.ndim == 2]
    assert sum(weight.numel() for weight in maps) == LLAMA2_7B.n_weights


def test_reading_by_hand():
    """Layers and output once a pass; a second token also reads the first one's keys and values."""
    network = make_network(SMALL, torch.device("cpu"), torch.bfloat16)
    norms = 2 * 2 * 64  # of both layers
    size = 2 * (SMALL.n_weights + norms + 2048 * 64)
    seconds = reading_seconds(network, Rates({}, 1000.0), [10, 20], n_new=2, n_passes=3, kv_bytes=5)
    assert seconds == pytest.approx((3 * 2 * size + 5 * (10 + 11 + 20 + 21)) / 1000)


def test_batches_and_halves_are_noticed(monkeypatch):
    network = make_network(SMALL, torch.device("cpu"), torch.float32)
    with watching(torch.device("cpu")) as watch:
        decoder = Decoder(network, 0)
        options = {"room": 0, "max_bytes": 10**9, "share": False}
        (batch,) = decoding.plan(decoder, [[1, 2], [3, 4], [5]], [[[]]] * 3, **options)
        batch.halves()
    assert (watch.at_once, watch.n_halved) == (3, 1)
    assert watch.seconds > 0


def test_cells_by_hand():
    row = Row("a", "bfloat16", 10, 2000, 5.0, limit=2.5, floor=2.0, at_once=4, memory=1.25)
    assert row.cells(plain=2.0) == [
        "a", "bfloat16", "10", "200", "2", "400", "4.0", "2.00", "2.50", "4", "0", "1.25", "",
    ]  # fmt: skip
