"""What ``benchmarks/data.py`` measures, each job in a process of its own.

``python benchmarks/data_jobs.py '{"job": NAME, ...}'`` does one of :data:`JOBS` and writes what it
took as the last line.
"""

from __future__ import annotations

import gzip
import html
import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

# Only the standard library here: RecBole's environment has nothing else.

Job = dict[str, Any]
Result = dict[str, Any]

CHUNK = 500_000


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
    import pandas as pd  # here, so that the seconds leave it out

    assert pd.__version__
    raw, out = Path(job["raw"]), Path(job["out"])

    def run() -> Result:
        table, items, people = _read_with_pandas(raw)
        table = _filtered_with_pandas(table[table["item_id"].isin(items["item_id"])])
        table = _numbered_with_pandas(table)
        items = items.merge(table[["item_id", "item"]].drop_duplicates(), on="item_id")
        items = items.sort_values("item")[["item", "item_id", "title"]]
        n_train = table.loc[table["split"] == "train", "item"].value_counts()
        items["n_train"] = items["item"].map(n_train).fillna(0).astype(int)
        episodes = _episodes_with_pandas(table, items["item"].to_numpy(), job["users"])
        role = episodes.set_index("user")["split"]
        people = people.merge(table[["user_id", "user"]].drop_duplicates(), on="user_id")
        people["role"] = people["user"].map(role).fillna("rest")
        columns = ["user", "user_id", "role", "gender", "age", "occupation"]
        people = people.sort_values("user")[columns]

        out.mkdir(parents=True)
        table[["user", "item", "position", "split"]].to_parquet(out / "interactions.parquet")
        items.to_parquet(out / "items.parquet")
        people.to_parquet(out / "users.parquet")
        episodes.to_parquet(out / "episodes.parquet")
        return {"users": len(people), "items": len(items), "interactions": len(table)}

    return run


def _read_with_pandas(raw: Path) -> tuple[Any, Any, Any]:
    """Interactions, titles and profiles of ML-1M, the latter two in words."""
    import pandas as pd

    def read(name: str, columns: list[str]) -> Any:
        # pandas reads separators of two signs with its Python engine only
        return pd.read_csv(raw / name, sep="::", engine="python", names=columns, encoding="latin-1")

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
    people["gender"] = people["gender"].map({"F": "female", "M": "male"})
    return table, items, people


def _filtered_with_pandas(table: Any) -> Any:
    """In the users' order, without repeated interactions, rare users and rare items."""
    table = table.sort_values(["user_id", "time"], kind="stable")
    table = table.drop_duplicates(["user_id", "item_id"])
    while True:
        n_of_user = table.groupby("user_id")["item_id"].transform("size")
        n_of_item = table.groupby("item_id")["user_id"].transform("size")
        keep = (n_of_user >= 5) & (n_of_item >= 5)
        if keep.all():
            return table
        table = table[keep]


def _numbered_with_pandas(table: Any) -> Any:
    """With numbers of users and items, positions and splits."""
    import numpy as np

    of_user = table.groupby("user_id")
    from_end = of_user.cumcount(ascending=False)
    return table[["user_id", "item_id"]].assign(
        user=table["user_id"].astype("category").cat.codes,
        item=table["item_id"].astype("category").cat.codes,
        position=of_user.cumcount(),
        split=np.select([from_end == 0, from_end == 1], ["test", "validation"], "train"),
    )


def _episodes_with_pandas(table: Any, catalogue: Any, n_users: list[int]) -> Any:
    """One episode for each of the users drawn, in a loop."""
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(0)
    chosen = rng.permutation(table["user"].unique())[: sum(n_users)]
    role = np.repeat(["train", "validation", "test"], n_users)
    sequences = table[table["user"].isin(chosen)].groupby("user")["item"].apply(list)
    episodes = []
    for user, split in zip(chosen, role, strict=True):
        own = sequences[user]
        place = len(own) - (1 if split == "test" else 2)
        others = rng.choice(np.setdiff1d(catalogue, own), 9, replace=False)
        shown = rng.permutation([own[place], *others])
        episodes.append((user, split, own[:place], shown, list(shown).index(own[place])))
    columns = ["user", "split", "history", "candidates", "target"]
    return pd.DataFrame(episodes, columns=columns)


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


if __name__ == "__main__":
    work(json.loads(sys.argv[1]))
