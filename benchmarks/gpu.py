"""Speed and exactness of a 7B model on one GPU: ``python -m benchmarks.gpu --minutes 8``.

Needs a GPU of 48 GB or more and nothing from the network: a Llama of the shape of LLaMA-2-7B gets
random weights on the device (``--small``: a tiny one, also on a CPU). Every way of ranking is the
project's own; each part stands by itself, and one that fails or does not fit into the time that is
left is reported. Random weights never end a reply, so all replies have the same fixed length.

*x plain generate*: prompts a second, relative to transformers' ``generate``, one prompt at a time.
*x limit's time*: time relative to that of the tokens' matrix products (two operations per weight
of the layers) at this device's measured bfloat16 rate. *x memory's time*: for generated text,
relative to reading weights, keys and values once for every token at the measured copying rate.
*at once*: prompts in the largest batch, found from the free memory. *agrees*: share of rankings
equal to those of the bfloat16 model; in the rows "vs float32", to float32, one prompt at a time;
in the grid, to the same prompts with nothing shared. *memory GB*: peak, with all that is loaded; in
the rows "vs float32" that is both models.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from rich.console import Console
from rich.table import Table

from benchmarks.gpu_bench import (
    LARGE_SCALE,
    SMALL_SCALE,
    Bench,
    about,
    print_line,
    report,
    run_part,
    table_cells,
)
from benchmarks.gpu_measure import COLUMNS
from benchmarks.gpu_models import save_files
from benchmarks.gpu_parts import PARTS
from rpp.llms.weights import resolve_device


def run(bench: Bench, names: Sequence[str], minutes: float, output: Path | None) -> dict[str, Any]:
    """Run parts in their order, each by itself; what became of each.

    Args:
        bench: What they share.
        names: Of the parts.
        minutes: Time for all.
        output: Folder of the report.
    """
    latest = monotonic() + 60 * minutes
    is_small = bench.scale is SMALL_SCALE
    done: dict[str, Any] = {}
    for name in names:
        needs, part = PARTS[name]
        left = latest - monotonic()
        done[name] = run_part(bench, name, part, 1.0 if is_small else needs, left)
        report(bench, done, output)
    return done


def main(args: Sequence[str] | None = None) -> None:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all parts")
    parser.add_argument("--small", action="store_true", help="a tiny model")
    parser.add_argument("--output", type=Path, help="folder for gpu.json and gpu.md")
    parser.add_argument("--device", default="auto", help="default: the GPU if there is one")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    given = parser.parse_args(args)
    scale = SMALL_SCALE if given.small else LARGE_SCALE
    with TemporaryDirectory(prefix="rpp-gpu-") as temp:
        bench = Bench(scale, resolve_device(given.device), Path(temp, scale.shape.name))
        save_files(scale.shape, bench.folder)
        print_line(str(about(bench)))
        done = run(bench, given.parts, given.minutes, given.output)
    table = Table(*COLUMNS)
    for line in table_cells(bench.rows):
        table.add_row(*line)
    Console(width=200).print(table)
    for name, outcome in done.items():
        print_line(f"{name}: {outcome['status']}")
    print_line(f"Replies have {scale.n_new} tokens each: random weights never end one.")


if __name__ == "__main__":
    main()
