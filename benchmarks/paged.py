"""Attention on vLLM's paged cache beside the same on contiguous keys, on one GPU: python -m benchmarks.paged

GALI chunk-free, W = 8192, bf16, 32 query heads, 8 key heads, 128 wide, in `serving/vllm_gali` and in `models.DPI`,
one after the other. Blocks are shuffled. Times are measured as in `benchmarks.attention`, and are those of a layer:
what a step prepares for all its layers is not in them. "Speed" is that of the contiguous kernels = 1; the bound is 0.9.
"""

import argparse
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from benchmarks.attention import (
    _COLD_BYTES,
    GALI,
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    SCALING,
    Case,
    inputs_of,
    measure,
    plan_of,
    rope_of,
)
from benchmarks.machine import keep, show
from models.DPI.attention import api
from models.DPI.methods import build_method

BLOCK_SIZES = (16, 64)
BOUND = 0.9

CASES = tuple(
    Case(name, "dpi", GALI, 8192, keys, queries, (), batch)
    for keys in (32768, 131072)
    for name, queries, batch in (
        ("prefill", keys, 1),
        ("chunk of 2,048", 2048, 1),
        ("chunk of 512", 512, 1),
        ("decoding", 1, 1),
        ("decoding", 1, 8),
    )
)


@dataclass(frozen=True)
class Result:
    """Milliseconds. error: the largest difference between the two, relative to the largest output."""

    name: str
    keys: int
    batch: int
    block_size: int
    contiguous: float
    paged: float
    error: float

    @property
    def speed(self) -> float:
        """Relative to the contiguous kernels."""
        return self.contiguous / self.paged


def blocks_of(k: Tensor, v: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """A paged cache (blocks, Hkv, block size, 2 D) of k, v (B, Hkv, N, D), and its block table (B, N / block size)."""
    batch, kv_heads, length, head_dim = k.shape
    count = length // block_size
    order = torch.randperm(batch * count, generator=torch.Generator().manual_seed(0)).to(k.device)
    cache = k.new_empty(batch * count, kv_heads, block_size, 2 * head_dim)
    for row in range(batch):
        at = order[row * count : (row + 1) * count]
        for half, x in enumerate((k, v)):
            pages = x[row].view(kv_heads, count, block_size, head_dim).transpose(0, 1)
            cache[at, :, :, half * head_dim : (half + 1) * head_dim] = pages
    return cache, order.view(batch, count).int()


def run_case(case: Case) -> list[Result]:
    """Time one case, with each block size."""
    from vllm_gali import cuda, paged

    torch.manual_seed(0)
    inputs = [inputs_of(case)]
    while case.queries == 1 and sum(k.numel() * 4 for _, k, _ in inputs) < _COLD_BYTES:
        inputs.append(inputs_of(case))
    plan = plan_of(case, rope_of(case))

    def contiguous(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return api.attend(q, k, v, plan, scaling=SCALING, impl="triton")[0]

    time = statistics.median(measure(contiguous, case, inputs))
    expected = contiguous(*inputs[0]).transpose(1, 2).flatten(0, 1)
    method, rope = build_method(case.method, case.params, case.window), rope_of(case)
    segments = [method.segments(rope, case.keys - case.queries, case.keys)] * case.batch
    starts = [case.queries * number for number in range(case.batch + 1)]
    results = []
    for block_size in BLOCK_SIZES:
        caches = []
        for q, k, v in inputs:
            cache, table = blocks_of(k, v, block_size)
            caches.append((q.transpose(1, 2).flatten(0, 1).contiguous(), cache, torch.empty_like(expected)))
        batch = paged.Batch(starts, [case.keys] * case.batch, table, segments)

        def through_pages(q: Tensor, cache: Tensor, out: Tensor, batch: paged.Batch = batch) -> None:
            cuda.attend(q, cache, batch, SCALING, out)

        time_paged = statistics.median(measure(through_pages, case, caches))
        error = float((caches[0][2] - expected).abs().max() / expected.abs().max())
        results.append(Result(case.name, case.keys, case.batch, block_size, time, time_paged, error))
        del caches, cache
    return results


def table_of(results: list[Result]) -> Table:
    """A line for each case and block size."""
    table = Table(*("case", "keys", "batch", "block", "contiguous ms", "paged ms", "speed", "difference"))
    for r in results:
        speed = f"{r.speed:.2f}" if r.speed >= BOUND else f"{r.speed:.2f} < {BOUND}"
        times = (f"{r.contiguous:.3f}", f"{r.paged:.3f}")
        table.add_row(r.name, f"{r.keys:,}", str(r.batch), str(r.block_size), *times, speed, f"{r.error:.1e}")
    return table


def main(arguments: list[str] | None = None) -> int:
    """Run the cases and print a table. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paged", description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--keys", type=int, help="cases of so many keys")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("no CUDA device")
    sys.path.append(str(Path(__file__).resolve().parents[1] / "serving"))  # the plug-in need not be installed
    chosen = [case for case in CASES if options.only in case.name and options.keys in (None, case.keys)]
    results = [result for case in chosen for result in run_case(case)]
    show(f"bf16, {HEADS} query heads, {KV_HEADS} key heads, {HEAD_DIM} wide", table_of(results))
    keep(results, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
