"""The benchmark of the data preparation at a tiny size; what it calls agreement."""

from __future__ import annotations

import gzip
import re
import shutil
from importlib.util import find_spec

import numpy as np
import polars as pl
import pytest

from benchmarks import data, data_jobs

HAS_PANDAS = find_spec("pandas") is not None and find_spec("pyarrow") is not None


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """ML-1M in the form of the mirror: 60 users with 12 of 40 films each, and what is too rare.

    User 61 has two films, one of them seen by nobody else.
    """
    folder = tmp_path / "mirror/ml-1m"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(1, 61):
        films = rng.choice(40, 12, replace=False) + 1
        places = rng.permutation(12) + 1  # the file is not in the order of time
        lines += [f"{user}\t{film}\t{place}" for film, place in zip(films, places, strict=True)]
    lines += ["61\t1\t1", "61\t41\t2"]
    (folder / "ml-1m.inter.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    films = [f"{k}::Caf&eacute; {k}, The (19{k + 10})::Drama" for k in range(1, 42)]
    (folder / "movies.dat").write_text("\n".join(films), encoding="latin-1")
    people = [f"{k}::{'MF'[k % 2]}::25::7::01234" for k in range(1, 62)]
    (folder / "users.dat").write_text("\n".join(people), encoding="latin-1")
    monkeypatch.setenv("RPP_MIRROR", str(folder.parent))
    return folder


def test_the_table_has_all_rows_and_both_preparations_agree(mirror, tmp_path, capsys):
    out = tmp_path / "table.md"
    options = ["--sizes", "40000", "20000", "--users", "6", "4", "5", "--repeats", "1"]
    data.main([*options, "--out", str(out)])
    text = out.read_text()
    assert capsys.readouterr().out == text
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if re.match(r"\| (ML-1M|\d)", line)
    ]
    by_name = {name: cells for name, *cells in rows}
    made_up = [name for name in by_name if "made-up" in name]
    assert made_up == [f"{n} made-up interactions: data_prep" for n in ("20,000", "40,000")]
    for name, (users, items, interactions, seconds, cpu, peak_mb, _) in by_name.items():
        assert float(seconds) > 0
        assert float(cpu) > 0
        assert 50 < float(peak_mb.replace(",", "")) < 8000  # what the machine has shared counts
        if name.startswith("ML-1M"):
            assert (users, items, interactions) == ("60", "40", "720")
        else:
            left, of = (int(n.replace(",", "")) for n in (interactions, name.split()[0]))
            assert of / 2 < left < of
    forms = ("ML-1M, tab-separated, gzipped", "ML-1M, `ratings.dat`")
    assert [f"{form}: data_prep" in by_name for form in forms] == [True, True]
    assert [f"{form}: pandas" in by_name for form in forms] == [HAS_PANDAS, HAS_PANDAS]
    assert text.count("agree row by row") == 2 * HAS_PANDAS
    assert text.count("`pip install pandas pyarrow`") == 2 * (not HAS_PANDAS)
    assert "time and memory grow" in text
    assert ("RecBole" in "".join(by_name)) != ("No row for RecBole" in text)


def test_without_a_mirror_it_says_what_to_set(monkeypatch, tmp_path):
    monkeypatch.setenv("RPP_MIRROR", str(tmp_path))
    with pytest.raises(SystemExit, match="set RPP_MIRROR"):
        data.main(["--sizes"])


def test_a_job_that_fails_is_no_figure():
    result = data.measure("with_data_prep", raw="/nowhere", out="/nowhere", users=[1, 1, 1])
    assert result.keys() == {"error"}
    assert "/nowhere" in result["error"]
    assert "error" in data.measure("with_recbole", raw="/nowhere")


def _one_more(column):
    first = pl.int_range(pl.len()) == 0
    return pl.when(first).then(pl.col(column) + 1).otherwise(column).alias(column)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("interactions", pl.lit("train").alias("split"), "interactions"),
        ("interactions", _one_more("item"), "interactions"),
        ("items", pl.lit("X").alias("title"), "items"),
        ("users", _one_more("user"), "users"),
        ("episodes", _one_more("target"), "episodes of"),
        ("episodes", pl.col("candidates").list.reverse(), "episodes of"),
        ("episodes", pl.col("history").list.reverse(), "episodes of"),
        ("episodes", pl.lit(0, pl.UInt32).alias("user"), "episodes of"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_difference_is_noticed(prepared_folder, tmp_path, name, change, said):
    other = tmp_path / "other"
    shutil.copytree(prepared_folder, other)
    job = {"folders": [str(prepared_folder), str(other)]}
    assert data_jobs.agreement(job)() == {"differs": None}
    table = pl.read_parquet(other / f"{name}.parquet")
    table.with_columns(change).write_parquet(other / f"{name}.parquet")
    assert data_jobs.agreement(job)()["differs"].startswith(said)
