"""The parts of the GPU benchmark, in order of value; each measures by the project's own code."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks.gpu_attention import attention_of, kernels
from benchmarks.gpu_bench import PLAIN, Bench, print_line
from benchmarks.gpu_measure import Row, measure_rates, wait, watching, weight_bytes
from benchmarks.gpu_models import CATALOGUE, PATTERNS, make_prompts
from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.llms.weights import Quantization
from rpp.ranker import Decoding, Ranker

SCORED: list[tuple[str, Decoding, bool]] = [
    ("first_token", "first_token", True),
    ("likelihood", "likelihood", True),
    ("likelihood, list hidden", "likelihood", False),
    ("constrained", "constrained", True),
]
N_QLORA_STEPS = 3


def rates(bench: Bench) -> None:
    """Rates of the device: matrix products, copies."""
    bench.rates = measure_rates(bench.device, bench.scale.matrix)
    print_line(f"  {bench.rates}")


def weights(bench: Bench) -> None:
    """Make the network on the device, and load nothing."""
    started = perf_counter()
    network = bench.network
    wait(bench.device)
    bench.notes["weights"] = {
        "seconds": perf_counter() - started,
        "device": str(network.device),
        "attention": network.config._attn_implementation,
        "GB read for every generated token": weight_bytes(network) / 1e9,
    }
    print_line(f"  {bench.notes['weights']}")


def scored(bench: Bench) -> None:
    """All decodings but free text."""
    llm = bench.llm(bench.network)
    for name, decoding, show in SCORED:
        key = decoding, show
        bench.found[key] = bench.measure(name, llm, decoding, bench.scale.n_users, show=show)


def plain(bench: Bench) -> None:
    """Free text by transformers alone: one prompt at a time, as the authors' code, then batches."""
    llm = bench.llm(bench.network)
    _plain_generate(bench, llm, 1, 1)  # warm
    bench.rows.pop()
    _plain_generate(bench, llm, bench.scale.n_alone, 1)
    for size in bench.scale.batches:
        _plain_generate(bench, llm, size, size)


def _plain_generate(bench: Bench, llm: HuggingFaceLanguageModel, n: int, size: int) -> None:
    prompts, _ = make_prompts(Ranker(llm, "generate"), n)
    texts = [llm.prompt_tokenizer.render(prompt.text) for prompt in prompts]
    with watching(bench.device) as watch, torch.inference_mode():
        for k in range(0, n, size):
            batch = llm.tokenizer(texts[k : k + size], padding=True, return_tensors="pt")
            llm.network.generate(  # type: ignore[operator]
                input_ids=batch.input_ids.to(bench.device),
                attention_mask=batch.attention_mask.to(bench.device),
                do_sample=False,
                max_new_tokens=bench.scale.n_new,
                pad_token_id=llm.tokenizer.pad_token_id,
                disable_compile=True,
            )
    lengths = [llm.count_tokens(prompt.text) for prompt in prompts]
    total = sum(lengths) + n * bench.scale.n_new
    way = PLAIN if size == 1 else "transformers' generate"
    row = Row(way, "bfloat16", n, total, watch.seconds, bench.limit(total))
    row.floor, row.at_once, row.memory = bench.floor(llm.network, lengths, size), size, watch.memory
    bench.add(row)


def generate(bench: Bench) -> None:
    """Free text by the project."""
    bench.measure("generate", bench.llm(bench.network), "generate", bench.scale.n_users)


def grid(bench: Bench) -> None:
    """Every reasoning and format sentence for a few users, with and without shared prefixes."""
    n = bench.scale.n_grid_users
    shared, alone = bench.llm(bench.network), bench.llm(bench.network, share_prefixes=False)
    for name, decoding, show in SCORED[:3]:
        rankings = bench.measure(
            f"grid, {name}, nothing shared", alone, decoding, n, show=show, grid=True
        )
        bench.measure(
            f"grid, {name}, shared", shared, decoding, n, show=show, grid=True, reference=rankings
        )


def attention(bench: Bench) -> None:
    """Kernels of a pass and of generation; ways to compute a tree's attention."""
    llm = bench.llm(bench.network, max_new_tokens=min(8, bench.scale.n_new))
    notes = bench.notes.setdefault("attention", {})
    asked: tuple[Decoding, ...] = ("first_token", "likelihood", "generate")
    for decoding in asked:
        ask = _asking(llm, decoding, min(8, bench.scale.n_users))
        notes[decoding] = kernels(ask, bench.device)
        print_line(f"  {decoding}: {notes[decoding]}")
    _trees(bench, "tree")


def flex(bench: Bench) -> None:
    """FlexAttention on a tree, compiled."""
    _trees(bench, "flex, tree", by_flex=True)


def _trees(bench: Bench, name: str, **options: bool) -> None:
    """Attention of trees of several sizes."""
    shape, notes = bench.scale.shape, bench.notes.setdefault("attention", {})
    rate = bench.rates.matrix.get(str(torch.bfloat16), float("nan"))
    for width in bench.scale.trees:
        key = f"{name} of {width}"
        notes[key] = attention_of(
            width, shape.n_heads, shape.hidden // shape.n_heads, bench.device, torch.bfloat16,
            rate, **options,
        )  # fmt: skip
        print_line(f"  {key}: {notes[key]}")


def _asking(llm: HuggingFaceLanguageModel, decoding: Decoding, n: int) -> Callable[[], object]:
    """Rank the same prompts anew with every call."""

    def ask() -> object:
        ranker = Ranker(llm, decoding)
        return ranker.rank(*make_prompts(ranker, n))

    return ask


def exact(bench: Bench) -> None:
    """Rankings of float32, one prompt at a time and nothing shared, against the other ways."""
    network = deepcopy(bench.network).float()
    n = bench.scale.n_exact
    whole: dict[str, Any] = {"dtype": "float32"}
    slow = bench.llm(network, share_prefixes=False, **whole)
    fast, half = bench.llm(network, **whole), bench.llm(bench.network)
    half_alone = bench.llm(bench.network, share_prefixes=False)
    for name, decoding, show in SCORED:
        ways: list[tuple[HuggingFaceLanguageModel, str, bool]] = [
            (fast, "float32", False), (half, "bfloat16", False), (half_alone, "bfloat16", True),
        ]  # fmt: skip
        reference = bench.measure(
            f"{name}, one by one", slow, decoding, n, show=show, precision="float32",
            one_by_one=True,
        )  # fmt: skip
        for llm, precision, one_by_one in ways:
            bench.measure(
                f"{name}{', one by one' if one_by_one else ''}, vs float32", llm, decoding, n,
                show=show, precision=precision, reference=reference, one_by_one=one_by_one,
            )  # fmt: skip


def stored(bench: Bench) -> None:
    """Save the weights, load them as a user's are loaded, and free them by ``close``.

    From here on models are loaded one at a time, so that their memory is their own.
    """
    needed = 1.1 * weight_bytes(bench.network)
    if (free := shutil.disk_usage(bench.folder).free) < needed:
        raise OSError(f"the disk has {free / 1e9:.0f} GB free, and {needed / 1e9:.0f} are needed")
    started = perf_counter()
    bench.network.save_pretrained(bench.folder)
    notes = bench.notes["stored"] = {"save": perf_counter() - started}
    llm = bench.llm()
    before, started = _allocated(bench), perf_counter()
    llm.score(["warm"], [["up"]])
    notes |= {"load": perf_counter() - started, "loaded GB": _allocated(bench) - before}
    llm.close()
    notes["GB left after close"] = _allocated(bench) - before
    print_line(f"  {notes}")
    _save_adapter(bench)
    del bench.network


def _allocated(bench: Bench) -> float:
    """Memory of the device in use, in 10^9 bytes; 0 on a CPU."""
    on_gpu = bench.device.type == "cuda"
    return torch.cuda.memory_allocated(bench.device) / 1e9 if on_gpu else 0.0


def quantised(quantization: Quantization) -> Callable[[Bench], None]:
    """Load in 4 or 8 bits and rank."""

    def part(bench: Bench) -> None:
        llm = _loaded(bench, quantization=quantization)
        n = bench.scale.n_users
        for name, decoding, show in SCORED:
            bench.measure(
                name, llm, decoding, n, show=show, precision=quantization,
                reference=bench.found.get((decoding, show)),
            )  # fmt: skip
        bench.measure("generate", llm, "generate", max(1, n // 4), precision=quantization)
        llm.close()

    return part


def _loaded(bench: Bench, **options: Any) -> HuggingFaceLanguageModel:
    """A language model loaded from the folder; the seconds are noted.

    Raises:
        FileNotFoundError: If the part that saves the weights has not run.
    """
    if not any(bench.folder.glob("*.safetensors")):
        raise FileNotFoundError("no weights are saved: the part 'stored' comes first")
    llm, started = bench.llm(**options), perf_counter()
    llm.score(["warm"], [["up"]])
    name = " ".join(str(Path(str(option)).name) for option in options.values())
    bench.notes[f"seconds to load, {name}"] = perf_counter() - started
    return llm


def adapted(quantization: Quantization | None) -> Callable[[Bench], None]:
    """A LoRA adapter: merged into bfloat16 weights, beside quantised ones."""

    def part(bench: Bench) -> None:
        llm = _loaded(bench, adapter=str(_adapter_folder(bench)), quantization=quantization)
        precision = f"{quantization or 'bfloat16'} + LoRA"
        n = bench.scale.n_users
        bench.measure("first_token", llm, "first_token", n, precision=precision)
        bench.measure("generate", llm, "generate", max(1, n // 4), precision=precision)
        llm.close()

    return part


def _adapter_folder(bench: Bench) -> Path:
    return bench.folder.with_name("adapter")


def _save_adapter(bench: Bench) -> None:
    """Save an adapter of random weights that change the model."""
    from peft import LoraConfig, get_peft_model

    from rpp.tuning.module import LINEAR

    torch.manual_seed(0)
    config = LoraConfig(r=16, lora_alpha=32, target_modules=list(LINEAR), task_type="CAUSAL_LM")
    around: Any = get_peft_model(bench.network, config)
    for name, weight in around.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight.data, std=0.01)
    around.save_pretrained(str(_adapter_folder(bench)), save_embedding_layers=False)


def qlora(bench: Bench) -> None:
    """Steps of tuning an adapter on 4-bit weights."""
    import numpy as np
    from lightning import Trainer

    from rpp.tuning.instructions import draw_instruction
    from rpp.tuning.losses import encode, likelihood_loss
    from rpp.tuning.module import RankingAdapter

    llm = _loaded(bench, quantization="4bit")
    tuned = RankingAdapter(llm, str(bench.folder.with_name("tuned")), rank=16, alpha=32)
    kind = "gpu" if bench.device.type == "cuda" else "cpu"
    tuned.trainer = Trainer(accelerator=kind, devices=1, logger=False, enable_checkpointing=False)
    tuned.configure_model()
    seen = frozenset(range(40))
    drawn = [
        draw_instruction(CATALOGUE[:40], CATALOGUE, seen, PATTERNS, np.random.default_rng(seed))
        for seed in range(bench.scale.n_tuned)
    ]
    encoded = [encode(llm, instruction, 1024) for instruction in drawn]
    adapter = [p for p in tuned.network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(adapter, lr=1e-3)
    losses: list[float] = []

    def step() -> None:
        loss = likelihood_loss(llm, encoded, bench.device)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    step()  # warm
    with watching(bench.device) as watch:
        for _ in range(N_QLORA_STEPS):
            step()
    bench.notes["QLoRA"] = {
        "seconds a step": watch.seconds / N_QLORA_STEPS,
        "tokens a step": sum(len(ids) for ids, _ in encoded),
        "peak GB": watch.memory,
        "losses": losses,
        "weights tuned": sum(weight.numel() for weight in adapter),
    }
    print_line(f"  {bench.notes['QLoRA']}")


PARTS: dict[str, tuple[float, Callable[[Bench], None]]] = {
    "rates": (5, rates),
    "weights": (10, weights),
    "scored": (25, scored),
    "plain": (30, plain),
    "generate": (15, generate),
    "grid": (20, grid),
    "exact": (60, exact),
    "attention": (30, attention),
    "stored": (40, stored),
    "4bit": (45, quantised("4bit")),
    "qlora": (25, qlora),
    "8bit": (45, quantised("8bit")),
    "adapter": (40, adapted(None)),
    "adapter on 4bit": (40, adapted("4bit")),
    "flex": (20, flex),
}
"""Parts by name, with the seconds each needs on an H200."""
