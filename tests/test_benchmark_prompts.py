"""The benchmarks of prompts and decodings with a tiny model: every row is there and adds up."""

from __future__ import annotations

import sys

import pytest
from cli_setup import ROOT

from benchmarks import decodings, sensitivity


@pytest.fixture
def run(prepared_folder, tiny_llm_folder, tmp_path, monkeypatch, capsys):
    """Run a benchmark on the made-up users; the cells of what it prints, row by row."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    (tmp_path / "data").mkdir()
    for name in ("custom", "ml-100k"):
        (tmp_path / "data" / name).symlink_to(prepared_folder)
    monkeypatch.setattr(decodings, "prepare", lambda settings, folder: None)

    def run(benchmark, *options):
        monkeypatch.setattr(sys, "argv", ["benchmark", "--model", str(tiny_llm_folder), *options])
        benchmark.main()
        lines = capsys.readouterr().out.splitlines()
        return [
            [cell.strip() for cell in line.strip("│").split("│")] for line in lines if "│" in line
        ]

    return run


def test_every_decoding_has_a_row(run):
    rows = run(decodings, "--n-users", "2", "--n-history", "2")
    said = {"yes": True, "no": False}
    settings = [(name, said[shown], layout) for name, shown, layout, *_ in rows]
    assert settings == decodings.SETTINGS
    for name, _, _, score, valid, seconds in rows:
        assert 0 <= float(score.split()[0]) <= 1
        assert float(seconds) >= 0
        if name != "generate":  # the others cannot answer with anything but a ranking
            assert valid == "100%"


def test_every_prompt_of_every_user_is_ranked(run):
    few = ("--data", "custom", "--n_users", "3", "--n_prompts", "4", "--history_lengths", "[1, 2]")
    whole, by_length = run(sensitivity, *few)
    _, first, interval, best, worst, over_prompts, within, own_best = whole
    mean, low, high = (float(number.strip("[,]")) for number in interval.split())
    best, worst, own_best = float(best), float(worst), float(own_best)
    assert 0 <= float(first) <= mean
    assert low <= mean <= high
    assert worst <= mean <= best <= own_best
    assert 0 <= float(over_prompts) <= (best - worst)
    assert float(within) >= 0
    name, *means = by_length
    assert name == "none"
    assert 1 <= len(means) <= 2  # lengths drawn, of the two
    assert worst <= min(map(float, means)) <= max(map(float, means)) <= best
