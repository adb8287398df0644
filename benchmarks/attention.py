"""Speed of attention over bands beside PyTorch's flash and cuDNN kernels, in one run: python -m benchmarks.attention

The shape is that of Llama-3-8B's attention: bf16, 32 query heads, 8 key heads, 128 wide. Every time is a median by
device events, with a cold L2 cache, of rounds in which the kernels take turns, because a GPU's clock moves; decoding
steps are replayed from a CUDA graph, so that launches cost nothing.
Rotating keys and queries is part of this project's times and not of PyTorch's, which get plain causal attention.
TFLOP/s count the logits that a query may see.
"""

import argparse
import logging
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.machine import keep, show
from models.DPI.attention import api
from models.DPI.attention.bands import Plan
from models.DPI.methods import Rope, build_method
from models.DPI.methods.base import frequencies_of
from models.DPI.planning import Padding, make_plan

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
# Decoding runs through this many bytes of keys and values, so that the L2 cache holds none of them.
_COLD_BYTES = 1 << 28
# Seconds for which decoding runs before it is timed: behind prefills the GPU's clock is low for a while.
_SETTLE = 0.3
_ROUNDS = 2
SCALING = HEAD_DIM**-0.5
THETA = 500_000.0
GALI = {"chunk_coe": 1, "local_window": 2048}
# s = 4 at 32,768 keys: noise on three keys of four.
CHUNKS = {"chunk_coe": 3000, "local_window": 2048}
NOISE = {**CHUNKS, "noise_type": "gaussian"}


@dataclass(frozen=True)
class Case:
    """One line. beside: the kernels of PyTorch that its speed is given relative to ("flash", "cudnn", "best")."""

    name: str
    method: str
    params: dict[str, Any]
    window: int
    keys: int
    queries: int
    beside: tuple[str, ...]
    batch: int = 1


CASES = (
    Case("chunk of 3,000", "dpi", CHUNKS, 10240, 32768, 3000, ("flash",)),
    Case("chunk of 512", "dpi", CHUNKS, 10240, 32768, 512, ("flash",)),
    Case("chunk of 3,000, noise", "dpi", NOISE, 10240, 32768, 3000, ("flash",)),
    Case("GALI chunk-free", "dpi", GALI, 8192, 32768, 32768, ("flash", "cudnn")),
    Case("SelfExtend", "repro_se", {"group_size": 5, "window_size": 2048}, 8192, 32768, 32768, ("flash",)),
    Case("ChunkLlama", "repro_chunkllama", {}, 8192, 32768, 32768, ("flash",)),
    *(
        Case("GALI decoding", "dpi", GALI, 8192, keys, 1, ("best",), batch)
        for keys in (16384, 32768, 131072)
        for batch in (1, 8)
    ),
)


@dataclass(frozen=True)
class Result:
    """Milliseconds; PyTorch's are None where its kernel refused."""

    name: str
    keys: int
    queries: int
    batch: int
    gali: float
    flash: float | None
    cudnn: float | None
    work: float  # FLOP of a prefill, bytes of a decoding step
    beside: tuple[str, ...]

    def relative(self, kernel: str) -> float | None:
        """Speed relative to one of PyTorch's kernels."""
        times = [t for t in (self.flash, self.cudnn) if t] if kernel == "best" else [getattr(self, kernel)]
        return min(times) / self.gali if times and times[0] else None


def plan_of(case: Case, rope: Rope) -> Plan:
    """The plan of the case's last queries."""
    method = build_method(case.method, case.params, case.window)
    return make_plan(method, rope, Padding(None, case.keys - case.queries, case.queries, case.batch), seed=0)


def inputs_of(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """q (B, H, T, D) and k, v (B, Hkv, N, D), bf16, random."""

    def draw(heads: int, length: int) -> Tensor:
        return torch.randn(case.batch, heads, length, HEAD_DIM, device="cuda", dtype=torch.bfloat16)

    return draw(HEADS, case.queries), draw(KV_HEADS, case.keys), draw(KV_HEADS, case.keys)


def rope_of(case: Case) -> Rope:
    """Llama 3's frequencies."""
    return Rope(frequencies_of(THETA, HEAD_DIM), case.window, THETA)


def measure(
    run: Callable[[Tensor, Tensor, Tensor], object], case: Case, inputs: list[tuple[Tensor, Tensor, Tensor]]
) -> list[float]:
    """Milliseconds of prefills, or of decoding steps on different inputs in turn, as one CUDA graph."""
    from triton.testing import do_bench

    if case.queries > 1:
        return list(do_bench(lambda: run(*inputs[0]), warmup=50, rep=200, return_mode="all"))
    run(*inputs[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for one in inputs:
            run(*one)
    begin = time.perf_counter()
    while time.perf_counter() - begin < _SETTLE:
        graph.replay()
        torch.cuda.synchronize()
    times: list[float] = []
    for _ in range(30):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / len(inputs))
    return times


def measure_torch(case: Case, backend: SDPBackend, inputs: list[tuple[Tensor, Tensor, Tensor]]) -> list[float]:
    """Plain attention of the same shape; no times if the kernel refuses it. A chunk is aligned at the end."""
    square = case.queries == case.keys
    bias = None if square or case.queries == 1 else causal_lower_right(case.queries, case.keys)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, bias, is_causal=square, scale=SCALING, enable_gqa=True)

    try:
        with sdpa_kernel(backend):
            return measure(run, case, inputs)
    except RuntimeError as error:
        logging.getLogger(__name__).warning("%s on %s: %s", backend.name, case.name, str(error).splitlines()[0])
        return []


def run_case(case: Case, impl: str) -> Result:
    """Time one case."""
    torch.manual_seed(0)
    inputs = [inputs_of(case)]
    while case.queries == 1 and sum(k.numel() * 4 for _, k, _ in inputs) < _COLD_BYTES:
        inputs.append(inputs_of(case))
    plan = plan_of(case, rope_of(case))

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return api.attend(q, k, v, plan, scaling=SCALING, impl=impl)[0]

    gali: list[float] = []
    flash: list[float] = []
    cudnn: list[float] = []
    for _ in range(_ROUNDS):
        gali += measure(run, case, inputs)
        flash += measure_torch(case, SDPBackend.FLASH_ATTENTION, inputs)
        cudnn += measure_torch(case, SDPBackend.CUDNN_ATTENTION, inputs)
    k = inputs[0][1]
    if case.queries == 1:
        work = float(2 * k.numel() * k.element_size())
    else:
        pairs = sum(range(case.keys - case.queries + 1, case.keys + 1))
        work = 4.0 * case.batch * HEADS * HEAD_DIM * pairs
    return Result(
        name=case.name,
        keys=case.keys,
        queries=case.queries,
        batch=case.batch,
        gali=statistics.median(gali),
        flash=statistics.median(flash) if flash else None,
        cudnn=statistics.median(cudnn) if cudnn else None,
        work=work,
        beside=case.beside,
    )


def table_of(results: list[Result]) -> Table:
    """TFLOP/s of prefills, GB/s of decoding, and the speed relative to PyTorch's kernels."""
    table = Table(*("case", "keys", "batch", "ms", "TFLOP/s or GB/s", "flash", "cuDNN", "here relative to"))
    for r in results:
        unit = 1e-6 if r.queries == 1 else 1e-9  # from work per millisecond

        def rate(ms: float | None, r: Result = r, unit: float = unit) -> str:
            return "-" if ms is None else f"{r.work / ms * unit:,.0f}"

        relative = [f"{kernel} {'-' if (x := r.relative(kernel)) is None else f'{x:.2f}'}" for kernel in r.beside]
        row = (rate(r.gali), rate(r.flash), rate(r.cudnn), ", ".join(relative))
        table.add_row(r.name, f"{r.keys:,}", str(r.batch), f"{r.gali:.3f}", *row)
    return table


def main(arguments: list[str] | None = None) -> int:
    """Run the cases and print a table. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__)
    parser.add_argument("--impl", default="triton", choices=api.IMPLEMENTATIONS)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("no CUDA device")
    results = [run_case(case, options.impl) for case in CASES if options.only in case.name]
    show(f"bf16, {options.impl}", table_of(results))
    keep(results, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
