"""Attention of prompt trees on a GPU: which kernel runs, and what faster ones would bring.

A tree's mask is dense, which forfeits the flash kernel. Each way is timed alone, on the shape of
one layer; ways that a device or a version cannot run are reported with their error.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_measure import seconds_of, wait
from rpp.llms.base import first_line
from rpp.llms.tree import Tree, attention_mask

FLEX = "flex, blocks of the tree"

MATH_NODES = 2048
"""Largest tree for the plain kernel, which keeps the scores of all pairs."""


def comb(width: int, n_branches: int = 16) -> Tree:
    """A tree of about this many nodes: half of them shared, then branches of equal length."""
    tree, length = Tree(), width // 2 // n_branches
    shared = list(range(width // 2))
    for branch in range(n_branches):
        tree.add([*shared, *range(width + branch * length, width + (branch + 1) * length)])
    return tree


def kernels(work: Callable[[], Any], device: torch.device, n: int = 6) -> dict[str, float]:
    """The kernels that take longest, with their share of the time; on a CPU the operations.

    ``busy`` is the share of the time in which the device ran any: the rest is Python's.
    """
    work()
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        started = perf_counter()
        work()
        wait(device)
        seconds = perf_counter() - started
    on_gpu = device.type == "cuda"
    times: dict[str, float] = {}
    for event in profiler.key_averages():
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        times[event.key] = times.get(event.key, 0.0) + float(spent)
    total = sum(times.values()) or 1.0
    longest = sorted(times.items(), key=lambda pair: -pair[1])[:n]
    shares = {name[:120]: round(spent / total, 3) for name, spent in longest}
    return {"busy": round(total / 1e6 / seconds, 3)} | shares


def ways(queries: torch.Tensor, mask: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    """Ways to compute the attention of one layer; those named causal see a mere text."""

    def by(backend: SDPBackend | None, **options: Any) -> Callable[[], torch.Tensor]:
        def attend() -> torch.Tensor:
            if backend is None:
                return scaled_dot_product_attention(queries, queries, queries, **options)
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(queries, queries, queries, **options)

        return attend

    made = {
        "chosen, mask": by(None, attn_mask=mask),
        "chosen, causal": by(None, is_causal=True),
        "flash, causal": by(SDPBackend.FLASH_ATTENTION, is_causal=True),
        "cudnn, causal": by(SDPBackend.CUDNN_ATTENTION, is_causal=True),
        "efficient, mask": by(SDPBackend.EFFICIENT_ATTENTION, attn_mask=mask),
        "cudnn, mask": by(SDPBackend.CUDNN_ATTENTION, attn_mask=mask),
    }
    if queries.shape[2] <= MATH_NODES:
        made["math, mask"] = by(SDPBackend.MATH, attn_mask=mask)
    return made


def flex(queries: torch.Tensor, visible: torch.Tensor) -> Callable[[], torch.Tensor]:
    """FlexAttention, compiled on a GPU: blocks that nobody sees are left out."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    attend: Any = torch.compile(flex_attention) if queries.is_cuda else flex_attention
    block: Any = None

    def sees(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return visible[query, key]

    def work() -> torch.Tensor:
        nonlocal block
        if block is None:
            nodes = queries.shape[2]
            block = create_block_mask(sees, None, None, nodes, nodes, device=str(queries.device))
        found: torch.Tensor = attend(queries, queries, queries, block_mask=block)
        return found

    return work


def attention_of(
    width: int,
    n_heads: int,
    head_dim: int,
    device: torch.device,
    dtype: torch.dtype,
    rate: float,
    *,
    by_flex: bool = False,
) -> dict[str, Any]:
    """Every way on a tree of some width.

    Args:
        width: Nodes of the tree.
        n_heads: Attention heads.
        head_dim: Width of each.
        device: Where.
        dtype: Precision.
        rate: Operations a second of this device's matrix products.
        by_flex: Only FlexAttention, which takes long to compile.

    Returns:
        For every way the seconds, the time of an operation relative to a matrix product (what
        ``rpp.llms.decoder.ATTENTION_COST`` assumes) and the largest difference from the way that
        is used; or its error. Also the time of making the mask, and the kernel that is used.
    """
    tree = comb(width)

    def make_mask() -> torch.Tensor:
        return attention_mask(torch.from_numpy(tree.visible())[None], dtype).to(device)

    making, mask = seconds_of(make_mask, device, n=2), make_mask()
    torch.manual_seed(0)
    queries = torch.randn(1, n_heads, len(tree), head_dim, device=device).to(dtype)
    operations = 4 * n_heads * len(tree) ** 2 * head_dim
    expected = scaled_dot_product_attention(queries, queries, queries, attn_mask=mask)
    found: dict[str, Any] = {"nodes": len(tree), "making the mask": making}
    tried = {FLEX: flex(queries, mask[0, 0] == 0)} if by_flex else ways(queries, mask)
    for name, attend in tried.items():
        try:
            seconds = seconds_of(attend, device, n=3)
            apart = None if "causal" in name else float((attend() - expected).abs().max())
        except TimeoutError:
            raise
        except Exception as error:  # a kernel that this device or version has not
            found[name] = f"{type(error).__name__}: {first_line(error)}"
            continue
        found[name] = {
            "seconds": seconds,
            "x matrix product": seconds * rate / operations,
            "largest difference": apart,
        }
    found["kernel"] = kernels(
        lambda: scaled_dot_product_attention(queries, queries, queries, attn_mask=mask), device, 2
    )
    return found
