"""Time and memory of the data preparation: ``python benchmarks/data.py --out data.md``.

First MovieLens-1M from the raw files in ``$RPP_MIRROR/ml-1m``, beside a plain pandas script that
does the same job and RecBole's loader; once as the mirror holds it and once with the interactions
in the form GroupLens publishes (``ratings.dat``, fields separated by ``::``). Then growth with the
size of made-up interactions. Every figure comes from a process of its own (``data_jobs.py``); the
seconds leave out the imports, the memory is the most the process ever held.

pandas and RecBole are needed only for their rows: ``pip install pandas pyarrow``. RecBole 1.2.1
needs NumPy 1, so it needs its own environment: ``--recbole-python PYTHON``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Only the standard library here: a child begins with the memory of its parent as its peak.

Result = dict[str, Any]

JOBS = Path(__file__).with_name("data_jobs.py")
SIZES = (100_000, 1_000_000, 5_000_000, 25_000_000)
SPEED_UP, MEMORY_GB = 5, 8
"""Goals: speed-up over pandas; memory at 25 million interactions."""


def measure(job: str, python: str = sys.executable, **arguments: Any) -> Result:
    """Run a job in its own process.

    Returns:
        ``seconds``, ``cpu`` (seconds of processor time), ``peak_mb`` and what the job returns; or
        ``error``, the last line of what went wrong.
    """
    done = subprocess.run(
        [python, str(JOBS), json.dumps({"job": job, **arguments})],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    last = lines[-1] if lines else f"it ended with {done.returncode}"
    return dict(json.loads(last)) if done.returncode == 0 else {"error": last}


def needed(result: Result) -> Result:
    """The result of a job that must not fail."""
    if "error" in result:
        raise SystemExit(f"benchmarks/data.py: {result['error']}")
    return result


def fastest(repeats: int, out: Path, **job: Any) -> Result:
    """The fastest of several runs, each in a new folder; the last one's folder is ``out``."""
    results = []
    for number in range(repeats):
        target = out if number == repeats - 1 else out.with_name(f"{out.name}.{number}")
        results.append(measure(out=str(target), **job))
        if "error" in results[-1]:
            return results[-1]
    return min(results, key=lambda result: float(result["seconds"]))


def compare(given: argparse.Namespace, folder: Path) -> tuple[list[str], list[str]]:
    """ML-1M: rows of the table and notes."""
    raw = Path(os.environ.get("RPP_MIRROR", "")) / "ml-1m"
    if not (raw / "ml-1m.inter.gz").is_file():
        raise SystemExit(f"benchmarks/data.py: {raw} has no ml-1m.inter.gz: set RPP_MIRROR")
    dat, plain = folder / "dat", folder / "recbole" / "ml-1m"
    needed(measure("as_published", raw=str(raw), dat=str(dat), plain=str(plain)))
    rows, notes = [], []
    for form, source in (("tab-separated, gzipped", raw), ("`ratings.dat`", dat)):
        outs = {job: folder / f"{source.name}.{job}" for job in ("with_data_prep", "with_pandas")}
        ours, pandas = (
            fastest(given.repeats, out, job=job, raw=str(source), users=given.users)
            for job, out in outs.items()
        )
        rows.append(_row(f"ML-1M, {form}: data_prep", needed(ours)))
        if "error" in pandas:
            notes.append(
                f"No row for pandas ({pandas['error']}): `pip install pandas pyarrow` in this"
                " environment."
            )
            continue
        times = pandas["seconds"] / ours["seconds"]
        rows.append(_row(f"ML-1M, {form}: pandas", pandas, f"{times:.1f} × data_prep"))
        found = needed(measure("agreement", folders=[str(out) for out in outs.values()]))
        if found["differs"]:
            raise SystemExit(f"benchmarks/data.py: data_prep and pandas differ: {found['differs']}")
        reached = "reached" if times >= SPEED_UP else "not reached"
        notes.append(
            f"{form}: data_prep is {times:.1f} times faster than pandas (wanted: {SPEED_UP},"
            f" {reached}); interactions, splits, items and users of both agree row by row."
        )
    recbole = fastest(
        given.repeats, folder / "none", job="with_recbole", python=given.recbole_python,
        raw=str(plain.parent),
    )  # fmt: skip
    if "error" in recbole:
        notes.append(
            f"No row for RecBole ({recbole['error']}): name an environment in which it runs with"
            " `--recbole-python`."
        )
    else:
        rows.append(_row("ML-1M, tab-separated: RecBole's loader, in memory only", recbole))
    return rows, notes


def grow(given: argparse.Namespace, folder: Path) -> tuple[list[str], list[str]]:
    """Synthetic interactions of several sizes: rows of the table and notes."""
    rows, notes = [], []
    before: Result | None = None
    for n in sorted(given.sizes):
        data, out = folder / f"data{n}", folder / f"out{n}"
        made = needed(measure("made_up", n=n, folder=str(data)))
        files = {"interactions": f"{data}/interactions.csv", "titles": f"{data}/items.csv"}
        runs = fastest(given.repeats, out, job="with_data_prep", custom=files, users=given.users)
        result = needed(runs) | {"n": n}
        note = f"{result['seconds'] / n * 1e6:.2f} s a million"
        if before:
            data_x, time_x, memory_x = (
                result[key] / before[key] for key in ("n", "seconds", "peak_mb")
            )
            note += f"; data × {data_x:.3g}, time × {time_x:.3g}, memory × {memory_x:.3g}"
            grown = "no faster" if max(time_x, memory_x) <= data_x else "FASTER"
            notes.append(f"{before['n']:,} to {n:,}: time and memory grow {grown} than the data.")
        if n == max(SIZES):
            reached = "reached" if result["peak_mb"] <= MEMORY_GB * 1000 else "not reached"
            notes.append(
                f"{n:,} interactions take {result['peak_mb'] / 1000:.1f} GB (wanted: at most"
                f" {MEMORY_GB}, {reached}); making them up took {made['peak_mb']:.0f} MB."
            )
        rows.append(_row(f"{n:,} made-up interactions: data_prep", result, note))
        before = result
        for made_folder in (data, *folder.glob(f"{out.name}*")):
            shutil.rmtree(made_folder)
    return rows, notes


def _row(name: str, result: Result, note: str = "") -> str:
    cells = [
        name,
        *(f"{result[key]:,}" for key in ("users", "items", "interactions")),
        f"{result['seconds']:.2f}",
        f"{result['cpu']:.2f}",
        f"{result['peak_mb']:,.0f}",
        note,
    ]
    return f"| {' | '.join(cells)} |"


def main(args: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write it if a file was named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="Markdown file to write")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="0 or more sizes")
    parser.add_argument(
        "--repeats", type=int, default=3, help="runs of each row; the fastest counts"
    )
    parser.add_argument(
        "--users", type=int, nargs=3, default=(200, 100, 200), metavar="N",
        help="training, validation and test users with an episode",
    )  # fmt: skip
    parser.add_argument("--recbole-python", default=sys.executable, metavar="PYTHON")
    given = parser.parse_args(args)
    with tempfile.TemporaryDirectory(prefix="rpp-benchmark-") as temp:
        parts = [compare(given, Path(temp)), grow(given, Path(temp))]
    lines = [
        "| what | users | items | interactions left | s | CPU s | peak MB | |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
        *(row for rows, _ in parts for row in rows),
        "",
        *(f"- {note}" for _, notes in parts for note in notes),
        "",
        f"`python benchmarks/data.py`, Python {platform.python_version()}, {os.cpu_count()} cores;"
        f" load {os.getloadavg()[0]:.1f} at the end.",
    ]
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if given.out:
        given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
