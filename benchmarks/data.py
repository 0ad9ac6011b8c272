"""Time and memory of the data preparation: ``python benchmarks/data.py --out data.md``.

First MovieLens-1M from the raw files in ``$RPP_MIRROR/ml-1m``, beside a plain pandas script that
does the same job and RecBole's loader; once as the mirror holds it and once with the interactions
in the form GroupLens publishes (``ratings.dat``, fields separated by ``::``). Then growth with the
size of made-up interactions. Every figure comes from a process of its own; the seconds leave out
the imports, the memory is the most the process ever held.

pandas and RecBole are needed for their rows alone: ``pip install pandas pyarrow``. RecBole 1.2.1
needs NumPy 1, so give it an environment of its own and name that: ``--recbole-python PYTHON``.
"""

from __future__ import annotations

import argparse
import gzip
import html
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

# Only the standard library here: a child begins with the memory of its parent as its peak, and
# RecBole's environment has nothing else.

Job = dict[str, Any]
Result = dict[str, Any]

SIZES = (100_000, 1_000_000, 5_000_000, 25_000_000)
CHUNK = 500_000
SPEED_UP, MEMORY_GB = 5, 8
"""What has to be reached: times faster than pandas; memory at 25 million interactions."""


# -- the jobs, each in a process of its own --------------------------------------------------------


def with_data_prep(job: Job) -> Callable[[], Result]:
    """This project's preparation."""
    from rich.console import Console

    from data_prep.prepare import CustomFiles, DataSettings, prepare

    custom = CustomFiles(**job["custom"]) if "custom" in job else None
    settings = DataSettings(
        name="custom" if custom else "ml-1m",
        raw_dir=job.get("raw"),
        n_train_users=job["users"][0],
        n_validation_users=job["users"][1],
        n_test_users=job["users"][2],
        custom=custom,
    )

    def run() -> Result:
        summary = prepare(settings, Path(job["out"]), Console(quiet=True))
        return dict(summary["counts"]["prepared"])

    return run


def with_pandas(job: Job) -> Callable[[], Result]:
    """The same as a plain pandas script: whole columns at once, a loop over the episode users."""
    import numpy as np
    import pandas as pd

    raw, out = Path(job["raw"]), Path(job["out"])
    genders = {"F": "female", "M": "male"}

    def read(name: str, columns: list[str]) -> Any:
        # pandas reads separators of two signs with its Python engine only
        return pd.read_csv(raw / name, sep="::", engine="python", names=columns, encoding="latin-1")

    def run() -> Result:
        if (raw / "ratings.dat").is_file():
            table = read("ratings.dat", ["user_id", "item_id", "rating", "time"])
        else:
            table = pd.read_csv(raw / "ml-1m.inter.gz", sep="\t")
            table.columns = ["user_id", "item_id", "time"]
        items = read("movies.dat", ["item_id", "title", "genres"])
        article = r"^(.+?), (The|A|An)((?: \([^()]*\))*)$"
        titles = items["title"].map(html.unescape).str.replace(r"\s+", " ", regex=True).str.strip()
        items["title"] = titles.str.replace(article, r"\2 \1\3", regex=True)
        people = read("users.dat", ["user_id", "gender", "age", "occupation", "zip"])
        people["gender"] = people["gender"].map(genders)

        table = table[table["item_id"].isin(items["item_id"])]
        table = table.sort_values(["user_id", "time"], kind="stable")
        table = table.drop_duplicates(["user_id", "item_id"])
        while True:
            n_of_user = table.groupby("user_id")["item_id"].transform("size")
            n_of_item = table.groupby("item_id")["user_id"].transform("size")
            keep = (n_of_user >= 5) & (n_of_item >= 5)
            if keep.all():
                break
            table = table[keep]
        of_user = table.groupby("user_id")
        position, from_end = of_user.cumcount(), of_user.cumcount(ascending=False)
        table = pd.DataFrame(
            {
                "user_id": table["user_id"],
                "item_id": table["item_id"],
                "user": table["user_id"].astype("category").cat.codes,
                "item": table["item_id"].astype("category").cat.codes,
                "position": position,
                "split": np.select([from_end == 0, from_end == 1], ["test", "validation"], "train"),
            }
        )
        items = items.merge(table[["item_id", "item"]].drop_duplicates(), on="item_id")
        items = items.sort_values("item")[["item", "item_id", "title"]]
        n_train = table.loc[table["split"] == "train", "item"].value_counts()
        items["n_train"] = items["item"].map(n_train).fillna(0).astype(int)

        rng = np.random.default_rng(0)
        chosen = rng.permutation(table["user"].unique())[: sum(job["users"])]
        role = np.repeat(["train", "validation", "test"], job["users"])
        people = people.merge(table[["user_id", "user"]].drop_duplicates(), on="user_id")
        people["role"] = people["user"].map(dict(zip(chosen, role, strict=True))).fillna("rest")
        people = people.sort_values("user")[
            ["user", "user_id", "role", "gender", "age", "occupation"]
        ]
        sequences = table[table["user"].isin(chosen)].groupby("user")["item"].apply(list)
        catalogue = items["item"].to_numpy()
        episodes = []
        for user, split in zip(chosen, role, strict=True):
            own = sequences[user]
            place = len(own) - (1 if split == "test" else 2)
            others = rng.choice(np.setdiff1d(catalogue, own), 9, replace=False)
            shown = rng.permutation([own[place], *others])
            episodes.append((user, split, own[:place], shown, list(shown).index(own[place])))
        columns = ["user", "split", "history", "candidates", "target"]

        out.mkdir(parents=True)
        table[["user", "item", "position", "split"]].to_parquet(out / "interactions.parquet")
        items.to_parquet(out / "items.parquet")
        people.to_parquet(out / "users.parquet")
        pd.DataFrame(episodes, columns=columns).to_parquet(out / "episodes.parquet")
        return {"users": len(people), "items": len(items), "interactions": len(table)}

    return run


def with_recbole(job: Job) -> Callable[[], Result]:
    """RecBole's loader: filtered, ordered and split in memory; no candidates, nothing written."""
    from recbole.config import Config
    from recbole.data import create_dataset

    settings = {
        "data_path": job["raw"],
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "user_inter_num_interval": "[5,inf)",
        "item_inter_num_interval": "[5,inf)",
        "eval_args": {
            "split": {"LS": "valid_and_test"},
            "order": "TO",
            "group_by": "user",
            "mode": "uni9",
        },
        "use_gpu": False,
    }

    def run() -> Result:
        data = create_dataset(Config(model="Pop", dataset="ml-1m", config_dict=settings))
        splits = data.build()  # a number of users and items counts the padding
        n_interactions = sum(len(split) for split in splits)
        return {
            "users": data.user_num - 1,
            "items": data.item_num - 1,
            "interactions": n_interactions,
        }

    return run


def agreement(job: Job) -> Callable[[], Result]:
    """Whether two prepared folders hold the same data set, and sound episodes each."""
    import polars as pl

    def table(folder: str, name: str, *columns: str) -> pl.DataFrame:
        return pl.read_parquet(Path(folder) / f"{name}.parquet").select(
            pl.col(columns).cast(pl.String)
        )

    def run() -> Result:
        ours, theirs = job["folders"]
        compared = {
            "interactions": ("user", "item", "position", "split"),
            "items": ("item", "item_id", "title", "n_train"),
            "users": ("user", "user_id", "gender"),
            "episodes": ("split",),
        }
        for name, columns in compared.items():
            if not table(ours, name, *columns).equals(table(theirs, name, *columns)):
                return {"differs": name}
        for folder in job["folders"]:
            if not _episodes_are_sound(folder):
                return {"differs": f"episodes of {folder}"}
        return {"differs": None}

    return run


def _episodes_are_sound(folder: str) -> bool:
    """One episode a user; the target is the withheld item, the user had none of the others."""
    import polars as pl

    own = (
        pl.read_parquet(Path(folder) / "interactions.parquet")
        .sort("user", "position")
        .group_by("user", maintain_order=True)
        .agg(pl.col("item").cast(pl.Int64).alias("own"))
    )
    episodes = pl.read_parquet(Path(folder) / "episodes.parquet").join(
        own.with_columns(pl.col("user").cast(pl.Int64)),
        left_on=pl.col("user").cast(pl.Int64),
        right_on="user",
    )
    seen: set[int] = set()
    for row in episodes.iter_rows(named=True):
        place = len(row["own"]) - (1 if row["split"] == "test" else 2)
        target = row["candidates"][row["target"]]
        others = set(row["candidates"]) - {target}
        if (
            row["user"] in seen
            or target != row["own"][place]
            or list(row["history"]) != row["own"][:place]
            or len(others) != len(row["candidates"]) - 1
            or others & set(row["own"])
        ):
            return False
        seen.add(row["user"])
    return bool(seen)


def as_published(job: Job) -> Callable[[], Result]:
    """The mirror's ML-1M with its interactions in GroupLens' form and, for RecBole, unpacked.

    The mirror has no ratings, and places in the user's order for times; both are made up.
    """

    def run() -> Result:
        raw, dat, plain = (Path(job[key]) for key in ("raw", "dat", "plain"))
        dat.mkdir()
        plain.mkdir(parents=True)
        for name in ("movies.dat", "users.dat"):
            (dat / name).write_bytes((raw / name).read_bytes())
        with (
            gzip.open(raw / "ml-1m.inter.gz", "rt") as source,
            (dat / "ratings.dat").open("w") as ratings,
            (plain / "ml-1m.inter").open("w") as unpacked,
        ):
            unpacked.write(next(source))
            for line in source:
                unpacked.write(line)
                user, item, place = line.split()
                ratings.write(f"{user}::{item}::5::{956_703_932 + 60 * int(place)}\n")
        return {}

    return run


def made_up(job: Job) -> Callable[[], Result]:
    """A log in the order of time, with few very active users and few very popular items.

    A hundred interactions a user on average, log-normal; Zipf's law for the items.
    """
    import numpy as np
    import polars as pl

    def run() -> Result:
        n, folder, rng = job["n"], Path(job["folder"]), np.random.default_rng(0)
        n_users, n_items = max(n // 100, 1), max(round(10 * n**0.5), 1)
        users = np.cumsum(rng.lognormal(size=n_users))
        items = np.cumsum(1 / (np.arange(n_items) + 20))
        numbers = rng.permutation(n_items) + 1  # popularity does not follow the number
        folder.mkdir(parents=True)
        now = 1_000_000_000
        with (folder / "interactions.csv").open("wb") as file:
            file.write(b"user,item,timestamp\n")
            for start in range(0, n, CHUNK):
                size = min(CHUNK, n - start)
                times = now + np.cumsum(rng.integers(20, size=size))
                now = int(times[-1])
                chunk = {
                    "user": np.searchsorted(users, users[-1] * rng.random(size)) + 1,
                    "item": numbers[np.searchsorted(items, items[-1] * rng.random(size))],
                    "timestamp": times,
                }
                pl.DataFrame(chunk).write_csv(file, include_header=False)
        titles = [f"Title {number}" for number in range(1, n_items + 1)]
        pl.DataFrame({"item": np.arange(1, n_items + 1), "title": titles}).write_csv(
            folder / "items.csv"
        )
        return {}

    return run


JOBS = {
    job.__name__: job
    for job in (with_data_prep, with_pandas, with_recbole, agreement, as_published, made_up)
}


def work(job: Job) -> None:
    """Do one job and write what it took as the last line."""
    run = JOBS[job["job"]](job)  # the imports are done here
    started, cpu = perf_counter(), process_time()
    result = run()
    seconds, cpu = perf_counter() - started, process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_mb = peak * (1 if sys.platform == "darwin" else 1024) / 1e6  # bytes there, KiB elsewhere
    sys.stdout.write(
        "\n" + json.dumps({"seconds": seconds, "cpu": cpu, "peak_mb": peak_mb, **result})
    )


# -- the table -------------------------------------------------------------------------------------


def measure(job: str, python: str = sys.executable, **arguments: Any) -> Result:
    """Do a job in a process of its own.

    Returns:
        ``seconds``, ``cpu`` (seconds of processor time), ``peak_mb`` and what the job returns; or
        ``error``, the last line of what went wrong.
    """
    done = subprocess.run(
        [python, __file__, "--job", json.dumps({"job": job, **arguments})],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    last = lines[-1] if lines else f"it ended with {done.returncode}"
    return dict(json.loads(last)) if done.returncode == 0 else {"error": last}


def needed(result: Result) -> Result:
    """The result of a job without which there is no table."""
    if "error" in result:
        raise SystemExit(f"benchmarks/data.py: {result['error']}")
    return result


def fastest(repeats: int, out: Path, **job: Any) -> Result:
    """The quickest of several runs, each into a fresh folder; the last one's folder is ``out``."""
    results = []
    for number in range(repeats):
        target = out if number == repeats - 1 else out.with_name(f"{out.name}.{number}")
        results.append(measure(out=str(target), **job))
        if "error" in results[-1]:
            return results[-1]
    return min(results, key=lambda result: float(result["seconds"]))


def compare(given: argparse.Namespace, folder: Path) -> tuple[list[str], list[str]]:
    """ML-1M: rows of the table and remarks."""
    raw = Path(os.environ.get("RPP_MIRROR", "")) / "ml-1m"
    if not (raw / "ml-1m.inter.gz").is_file():
        raise SystemExit(f"benchmarks/data.py: {raw} has no ml-1m.inter.gz: set RPP_MIRROR")
    dat, plain = folder / "dat", folder / "recbole" / "ml-1m"
    needed(measure("as_published", raw=str(raw), dat=str(dat), plain=str(plain)))
    rows, remarks = [], []
    for form, source in (("tab-separated, gzipped", raw), ("`ratings.dat`", dat)):
        outs = {job: folder / f"{source.name}.{job}" for job in ("with_data_prep", "with_pandas")}
        ours, pandas = (
            fastest(given.repeats, out, job=job, raw=str(source), users=given.users)
            for job, out in outs.items()
        )
        rows.append(_row(f"ML-1M, {form}: data_prep", needed(ours)))
        if "error" in pandas:
            remarks.append(
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
        remarks.append(
            f"{form}: data_prep is {times:.1f} times faster than pandas (wanted: {SPEED_UP},"
            f" {reached}); interactions, splits, items and users of both agree row by row."
        )
    recbole = fastest(
        given.repeats, folder / "none", job="with_recbole", python=given.recbole_python,
        raw=str(plain.parent),
    )  # fmt: skip
    if "error" in recbole:
        remarks.append(
            f"No row for RecBole ({recbole['error']}): name an environment in which it runs with"
            " `--recbole-python`."
        )
    else:
        rows.append(_row("ML-1M, tab-separated: RecBole's loader, in memory only", recbole))
    return rows, remarks


def grow(given: argparse.Namespace, folder: Path) -> tuple[list[str], list[str]]:
    """Made-up interactions of several sizes: rows of the table and remarks."""
    rows, remarks = [], []
    before: Result | None = None
    for n in sorted(given.sizes):
        data, out = folder / f"data{n}", folder / f"out{n}"
        made = needed(measure("made_up", n=n, folder=str(data)))
        files = {"interactions": f"{data}/interactions.csv", "titles": f"{data}/items.csv"}
        runs = fastest(given.repeats, out, job="with_data_prep", custom=files, users=given.users)
        result = needed(runs) | {"n": n}
        remark = f"{result['seconds'] / n * 1e6:.2f} s a million"
        if before:
            data_x, time_x, memory_x = (
                result[key] / before[key] for key in ("n", "seconds", "peak_mb")
            )
            remark += f"; data × {data_x:.3g}, time × {time_x:.3g}, memory × {memory_x:.3g}"
            grown = "no faster" if max(time_x, memory_x) <= data_x else "FASTER"
            remarks.append(f"{before['n']:,} to {n:,}: time and memory grow {grown} than the data.")
        if n == max(SIZES):
            reached = "reached" if result["peak_mb"] <= MEMORY_GB * 1000 else "not reached"
            remarks.append(
                f"{n:,} interactions take {result['peak_mb'] / 1000:.1f} GB (wanted: at most"
                f" {MEMORY_GB}, {reached}); making them up took {made['peak_mb']:.0f} MB."
            )
        rows.append(_row(f"{n:,} made-up interactions: data_prep", result, remark))
        before = result
        for made_folder in (data, *folder.glob(f"{out.name}*")):
            shutil.rmtree(made_folder)
    return rows, remarks


def _row(name: str, result: Result, remark: str = "") -> str:
    cells = [
        name,
        *(f"{result[key]:,}" for key in ("users", "items", "interactions")),
        f"{result['seconds']:.2f}",
        f"{result['cpu']:.2f}",
        f"{result['peak_mb']:,.0f}",
        remark,
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
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args(args)
    if given.job:
        work(given.job)
        return
    with tempfile.TemporaryDirectory(prefix="rpp-benchmark-") as temp:
        parts = [compare(given, Path(temp)), grow(given, Path(temp))]
    lines = [
        "| what | users | items | interactions left | s | CPU s | peak MB | |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
        *(row for rows, _ in parts for row in rows),
        "",
        *(f"- {remark}" for _, remarks in parts for remark in remarks),
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
