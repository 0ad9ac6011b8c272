"""The recommenders without a language model: ``python benchmarks/recommenders.py NAME``.

Fits them in ``data/recommenders/NAME`` (what was learned before is used again) and prints the
figures of the test users, who are only scored. ``--candidates authors`` takes the users and lists
of the paper's authors, ``--sasrec.dropout 0.2`` and the like set a method's arguments, ``--only``
names methods. UniSRec and VQ-Rec are trained on the data sets named by ``--sources``.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from time import perf_counter
from typing import Literal

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from data_prep.prepare import DataSettings, prepare
from data_prep.sources import SOURCES
from rpp.baselines.base import Recommender, rank
from rpp.baselines.blend import Blend
from rpp.baselines.bm25 import BM25
from rpp.baselines.factorisation import BPRMF, LightGCN
from rpp.baselines.neighbours import EASE, ItemKNN
from rpp.baselines.popularity import Popularity
from rpp.baselines.sasrec import SASRec
from rpp.baselines.text import TextRecommender
from rpp.baselines.unisrec import UniSRec
from rpp.baselines.vqrec import VQRec
from rpp.data.episodes import load_episodes
from rpp.data.lightgcn import LightGCNSettings
from rpp.metrics import METRICS, chance, mean_interval, target_ranks
from rpp.types import Episode, InputError, final_scoring
from rpp.yaml_files import read_yaml

LEARNED: dict[str, type[Recommender]] = {
    "bm25": BM25, "knn": ItemKNN, "ease": EASE, "bprmf": BPRMF, "lightgcn": LightGCN,
    "sasrec": SASRec,
}  # fmt: skip
PRETRAINED: dict[str, type[TextRecommender]] = {"unisrec": UniSRec, "vqrec": VQRec}
PAPER = ("ml-1m", "games", "lastfm")
SHOWN = ("ndcg@1", "ndcg@5", "ndcg@10")


def arguments() -> tuple[ArgumentParser, Namespace]:
    """The command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("name", type=Literal[tuple(SOURCES)], help="The data set.")
    parser.add_argument("--candidates", type=Literal["uniform", "authors"], default="uniform")
    parser.add_argument("--n_validation_users", type=int, default=500)
    parser.add_argument("--n_test_users", type=int, default=1000)
    parser.add_argument("--only", nargs="+", choices=["pop", *LEARNED, "blend", *PRETRAINED])
    parser.add_argument("--sources", nargs="+", choices=SOURCES, help="Default: the paper's others")
    for name, kind in (LEARNED | PRETRAINED).items():
        parser.add_class_arguments(kind, name, skip={"sources"}, instantiate=name in LEARNED)
    return parser, parser.parse_args()


def prepared(name: str, given: Namespace, authors: bool = False) -> Path:
    """The data set's folder, prepared if need be."""
    folder = Path("data/recommenders") / (f"{name}-authors" if authors else name)
    settings = DataSettings(
        name,
        min_interactions=0 if authors else 5,
        candidates="authors" if authors else "uniform",
        order=SOURCES[name].orders[0],
        n_validation_users=50 if authors else given.n_validation_users,  # of 200
        n_test_users=given.n_test_users,
    )
    prepare(settings, folder, Console(quiet=True))
    return folder


def methods(parser: ArgumentParser, given: Namespace) -> dict[str, list[Recommender]]:
    """What is compared."""
    learned = parser.instantiate(given)
    others = given.sources or [name for name in PAPER if name != given.name]
    asked = given.only or ["pop", *LEARNED, "blend", *PRETRAINED]
    if learned.lightgcn.settings is None:  # not those of whatever vectors lie in the folder
        learned.lightgcn = LightGCN(lightgcn_settings(given.name))
    made: dict[str, list[Recommender]] = {name: [learned[name]] for name in LEARNED}
    made["pop"] = [Popularity()]
    made["blend"] = [
        Blend([Popularity(), learned.knn]),
        Blend([Popularity(), learned.knn, learned.bm25]),
    ]
    for name in set(PRETRAINED) & set(asked):
        sources = () if given[name].weights else tuple(str(prepared(o, given)) for o in others)
        made[name] = [PRETRAINED[name](**given[name], sources=sources)]
    return {name: made[name] for name in asked}


def lightgcn_settings(name: str) -> LightGCNSettings:
    """Those of the data set's overlay."""
    overlay = read_yaml(Path(f"conf/data/{name}.yaml"))
    return LightGCNSettings(**overlay["data"]["init_args"].get("lightgcn", {}))


def row(method: Recommender, folder: Path, test: list[Episode]) -> list[str]:
    """Fit, then score the test users."""
    started = perf_counter()
    method.fit(folder)
    seconds = perf_counter() - started
    rankings = rank(method.score(test), test)
    with final_scoring():
        ranks = target_ranks(rankings, test)
    means = [mean_interval(METRICS[name](ranks)) for name in SHOWN]
    interval = f"{means[-1].low:.3f}-{means[-1].high:.3f}"
    return [method.name, *(f"{value.mean:.3f}" for value in means), interval, f"{seconds:.1f}"]


def main() -> None:
    """Fit, score, print a table; what is wrong with the input in one sentence."""
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    parser, given = arguments()
    try:
        compare(parser, given)
    except InputError as error:
        Console(stderr=True, highlight=False).print(str(error), soft_wrap=True, markup=False)
        raise SystemExit(2) from None


def compare(parser: ArgumentParser, given: Namespace) -> None:
    """Prepare, fit, score, print."""
    started = perf_counter()
    folder = prepared(given.name, given, authors=given.candidates == "authors")
    test = load_episodes(folder, "test")
    table = Table(
        "method", *SHOWN, "95 % of ndcg@10", "fit s", title=f"{folder}, {len(test)} test users"
    )
    for asked in methods(parser, given).values():
        for method in asked:
            table.add_row(*row(method, folder, test))
            Console(stderr=True).print(table)  # a long run that is stopped has shown what it had
    n_candidates = len(test[0].candidates)
    table.add_row("chance", *(f"{chance(name, n_candidates):.3f}" for name in SHOWN))
    Console().print(table)
    Console().print(f"{(perf_counter() - started) / 60:.1f} minutes in all")


if __name__ == "__main__":
    main()
