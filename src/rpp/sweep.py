"""How scores depend on one setting: ``python -m rpp.sweep --config conf/sweeps/users.yaml``.

One comparison per value of the setting (paper, Figures 4, 5 and 6b), then one chart and one table
of all of them. Finished values are not run again, and a failed value does not stop the others.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import polars as pl
from jsonargparse import ArgumentParser

from data_prep.files import sha256
from rpp import charts
from rpp.cli import check_yaml, run
from rpp.data.pretrained import VECTORS_FILE
from rpp.llms.content import content_name
from rpp.metrics import CHANCE, METRICS, Interval, chance
from rpp.terminal import log_progress
from rpp.types import InputError, LanguageModelStop
from rpp.yaml_files import read_yaml

Value = int | float
Record = Mapping[str, Any]
"""Content of a ``comparison.json``."""


@dataclass(frozen=True)
class Sweep:
    """A setting to vary, and the methods to compare at every value.

    Args:
        name: Name of the sweep. Chart and table go to ``results/NAME``, the comparison at a value
            to ``results/NAME/VALUE`` and its prepared data to ``data/NAME/VALUE``.
        setting: The setting that is varied, such as ``data.init_args.n_train_users``.
        values: Its values.
        methods: Names of the methods to compare; differences are to the first.
        label: Name of the setting in the chart.
        configs: Configuration files of the comparison, left to right.
    """

    name: str
    setting: str
    values: list[Value]
    methods: list[str]
    label: str
    configs: list[str] = field(default_factory=lambda: ["conf/compare.yaml"])

    def __post_init__(self) -> None:
        """Refuse an empty sweep, and configuration files that cannot be read."""
        for key in ("values", "methods", "configs"):
            if not getattr(self, key):
                raise InputError(f"{key} is empty: name at least one")
        check_yaml([word for path in self.configs for word in ("--config", path)])

    @property
    def folder(self) -> Path:
        """Folder of chart and table."""
        return Path("results", self.name)

    def arguments(self, value: Value) -> list[str]:
        """The command line of the comparison at one value."""
        run_name = f"{self.name}/{value}"
        options = {
            "name": run_name,
            "data.init_args.data_dir": f"data/{run_name}",
            "model.init_args.only": json.dumps(self.methods),
            "model.init_args.reference": self.methods[0],
            self.setting: value,
        }
        configs = [f"--config={path}" for path in self.configs]
        return ["test", *configs, *(f"--{key}={given}" for key, given in options.items())]


def run_sweep(sweep: Sweep, *, again: bool = False) -> list[Value]:
    """Run the comparison at every unfinished value; write ``sweep.csv`` and ``sweep.png``.

    Args:
        sweep: The sweep.
        again: Run finished values too.

    Returns:
        The values without results.
    """
    records: dict[Value, Record] = {}
    failed = []
    for value in sweep.values:
        record = _record(sweep, value, again)
        if record is None:
            failed.append(value)
        else:
            records[value] = record
            _write(sweep, records)  # after every value: a long sweep may be stopped
    return failed


def _record(sweep: Sweep, value: Value, again: bool) -> Record | None:
    """The record of the comparison at one value, new or cached; ``None`` if it failed."""
    here = f"{sweep.label} {value}"
    folder = sweep.folder / str(value)
    report, mark = folder / "comparison.json", folder / "finished.json"
    about = {
        "arguments": sweep.arguments(value),
        "files": {
            str(path): content_name(str(path)) if path.is_dir() else sha256(path)
            for path in files_named(sweep.configs)
        },
    }
    if not again and mark.is_file() and report.is_file():
        if json.loads(mark.read_text()) == about:
            log_progress(f"{here} was finished before and is not run again (--again does that)")
            return _read(report)
        log_progress(f"{here} was finished with other settings and is run again")
    mark.unlink(missing_ok=True)
    _share_vectors(sweep, value)
    log_progress(f"{here} ...")
    try:
        comparison = run(sweep.arguments(value)).model
    except SystemExit as stop:
        # else the user or an exhausted budget ends the sweep
        if stop.code != 2 or isinstance(stop.__cause__, LanguageModelStop):
            raise
        log_progress(
            f"{here} failed for the reason above and has no results; the other values go on"
        )
        return None
    if not comparison.results:
        log_progress(
            f"{here} has no results, because no method could be run; the other values go on"
        )
        return None
    record = _read(report)
    if comparison.complete:
        mark.write_text(json.dumps(about, indent=2) + "\n")
    else:
        log_progress(f"{here} lacks methods or users: the same command will run it again")
    return record


def files_named(configs: Sequence[str]) -> list[Path]:
    """Configuration files, and the files and model folders they name, recursively.

    A name is relative to the working folder or, in a patterns file, to the file's own.
    """
    found: dict[Path, None] = {}
    waiting = [Path(name) for name in configs]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found[path] = None
        if path.suffix == ".yaml":
            for name in _texts(read_yaml(path)):
                places = (Path(name), path.parent / name) if len(name) < 200 else ()
                waiting += [each for each in places if each.is_file() or _is_model(each)]
    return sorted(found)


def _is_model(path: Path) -> bool:
    return any((path / name).is_file() for name in ("adapter_config.json", "config.json"))


def _texts(value: Any) -> Iterator[str]:
    """All strings in the content of a YAML file."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _read(report: Path) -> Record:
    try:
        record: Record = json.loads(report.read_text())
    except FileNotFoundError:
        raise InputError(
            f"there is no {report}: the comparison's configuration must have the callback"
            " ComparisonReport with the folder results/${name}"
        ) from None
    return record


def _share_vectors(sweep: Sweep, value: Value) -> None:
    """Copy the LightGCN vectors of another value into a value's data folder.

    They depend only on the training interactions and are trained again if those differ.
    """
    data = Path("data", sweep.name)
    for vectors in sorted(data.glob(f"*/*/{VECTORS_FILE}")):
        ours = data / str(value) / vectors.parent.name / VECTORS_FILE
        if not ours.exists():
            ours.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(vectors, ours)


def as_frame(records: Mapping[Value, Record]) -> pl.DataFrame:
    """One row per value and method, chance last: every metric with its interval."""
    lines: list[dict[str, Any]] = []
    for value, record in records.items():
        for row in record["rows"]:
            line = {"value": value, "method": row["name"]}
            for metric, score in row["scores"].items():
                line |= {metric: score["mean"]}
                line |= {f"{metric}_{end}": score[end] for end in ("low", "high")}
            lines.append(line)
        middle = {metric: chance(metric, _n_candidates(record)) for metric in METRICS}
        lines.append({"value": value, "method": CHANCE} | middle)
    return pl.DataFrame(lines, infer_schema_length=None)


def _n_candidates(record: Record) -> int:
    return int(record["data"]["settings"]["n_candidates"])


def _write(sweep: Sweep, records: Mapping[Value, Record]) -> None:
    as_frame(records).rename({"value": sweep.setting}).write_csv(sweep.folder / "sweep.csv")
    scores: dict[str, dict[float, Interval]] = {}
    for value, record in records.items():
        for row in record["rows"]:
            scores.setdefault(row["name"], {})[value] = Interval(**row["scores"]["ndcg@10"])
    chances = {value: chance("ndcg@10", _n_candidates(each)) for value, each in records.items()}
    figure = charts.by_value(scores, chances, sweep.label)
    figure.savefig(sweep.folder / "sweep.png", dpi=110)


def main(args: Sequence[str] | None = None) -> None:
    """Run a sweep; exit code 2 if a value has no results."""
    parser = ArgumentParser(prog="python -m rpp.sweep", description=__doc__)
    parser.add_argument("--config", action="config", help="A file of conf/sweeps.")
    parser.add_class_arguments(Sweep)
    parser.add_argument("--again", action="store_true", help="Run finished values too.")
    given = parser.parse_args(args)
    try:
        sweep = Sweep(**{each.name: given[each.name] for each in fields(Sweep)})
        failed = run_sweep(sweep, again=given.again)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from error
    if len(failed) < len(sweep.values):
        log_progress(f"Written to {sweep.folder}")
    if failed:
        log_progress(f"Without results: {sweep.label} {', '.join(map(str, failed))}")
        raise SystemExit(2)


if __name__ == "__main__":
    main()
