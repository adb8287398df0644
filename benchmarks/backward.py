"""Speed of the backward pass beside PyTorch's flash and cuDNN kernels, in one run: python -m benchmarks.backward

The shape is that of `benchmarks.attention`: bf16, 32 query heads, 8 key heads, 128 wide. Every time is a median by
device events, with a cold L2 cache. Rotating keys and queries, and turning their gradients back, is part of this
project's times and not of PyTorch's, which get plain causal attention. TFLOP/s count five products for each logit that
a query may see, two and a half times those of a forward pass.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.attention import HEAD_DIM, HEADS, SCALING, Case, inputs_of, plan_of, rope_of
from benchmarks.machine import keep, show
from models.DPI.attention import api

LENGTHS = (8192, 32768)
# The window is a quarter of the input.
METHODS: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "GALI chunk-free": ("dpi", lambda window: {"chunk_coe": 1, "local_window": window // 4}),
    "SelfExtend": ("repro_se", lambda window: {"group_size": 5, "window_size": window // 4}),
    "ChunkLlama, three bands": ("repro_chunkllama", lambda window: {}),
    "original, one band": ("repro_original", lambda window: {}),
}
# Queries, keys, warps, stages.
QUERY_TILINGS = (
    (128, 64, 8, 2),
    (128, 64, 8, 3),
    (128, 128, 8, 2),
    (128, 32, 8, 3),
    (64, 64, 4, 2),
    (64, 64, 4, 3),
    (64, 128, 4, 2),
)
KEY_TILINGS = (
    (64, 128, 8, 2),
    (64, 128, 8, 3),
    (32, 128, 8, 3),
    (32, 128, 8, 4),
    (128, 128, 8, 2),
    (64, 64, 4, 2),
    (64, 64, 4, 3),
    (32, 64, 4, 3),
)


@dataclass(frozen=True)
class Result:
    """Milliseconds of a backward pass; PyTorch's are None where its kernel refused. peak: GiB over the inputs."""

    name: str
    keys: int
    ours: float
    flash: float | None
    cudnn: float | None
    peak: float
    work: float


def cases() -> list[Case]:
    """Every method at every length."""
    return [
        Case(name, method, params(length // 4), length // 4, length, length, ("flash",))
        for length in LENGTHS
        for name, (method, params) in METHODS.items()
    ]


def median(run: Callable[[], object]) -> float:
    """Milliseconds."""
    from triton.testing import do_bench

    return float(do_bench(run, warmup=100, rep=600, return_mode="median"))


def time_backward(attend: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: tuple[Tensor, ...]) -> float:
    """Of one forward pass, again and again."""
    given = [x.detach().requires_grad_() for x in inputs]
    out = attend(given[0], given[1], given[2])
    d_out = torch.randn_like(out)
    return median(lambda: torch.autograd.grad(out, given, d_out, retain_graph=True))


def time_torch(case: Case, backend: SDPBackend, inputs: tuple[Tensor, ...]) -> float | None:
    """Plain causal attention, or None if the kernel refuses it."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=SCALING, enable_gqa=True)

    try:
        with sdpa_kernel(backend):
            return time_backward(attend, inputs)
    except RuntimeError as error:
        logging.getLogger(__name__).warning("%s on %s: %s", backend.name, case.name, str(error).splitlines()[0])
        return None


def run_case(case: Case, impl: str) -> Result:
    """Time one case."""
    torch.manual_seed(0)
    inputs = inputs_of(case)
    plan = plan_of(case, rope_of(case))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return api.attend(q, k, v, plan, scaling=SCALING, impl=impl)[0]

    flash = time_torch(case, SDPBackend.FLASH_ATTENTION, inputs)
    cudnn = time_torch(case, SDPBackend.CUDNN_ATTENTION, inputs)
    ours = time_backward(attend, inputs)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    given = [x.detach().requires_grad_() for x in inputs]
    attend(given[0], given[1], given[2]).backward(torch.ones_like(inputs[0]))
    peak = (torch.cuda.max_memory_allocated() - before) / 2**30
    return Result(case.name, case.keys, ours, flash, cudnn, peak, _work(case))


def _work(case: Case) -> float:
    """FLOP of a backward pass with five products."""
    return 10.0 * case.batch * HEADS * HEAD_DIM * (case.keys * (case.keys + 1) // 2)


def table_of(results: list[Result]) -> Table:
    """TFLOP/s, and the speed relative to PyTorch's flash."""
    table = Table(*("backward of", "keys", "ms", "TFLOP/s", "flash", "cuDNN", "relative to flash", "peak GiB"))
    for r in results:
        rates = ("-" if ms is None else f"{r.work / ms * 1e-9:,.0f}" for ms in (r.ours, r.flash, r.cudnn))
        relative = "-" if r.flash is None else f"{r.flash / r.ours:.2f}"
        table.add_row(r.name, f"{r.keys:,}", f"{r.ours:.3f}", *rates, relative, f"{r.peak:.2f}")
    return table


def tune(case: Case) -> Table:
    """Milliseconds of each kernel in tiles of several sizes, with the rotation."""
    from triton.runtime.errors import OutOfResources

    from models.DPI.attention.kernels import backward, prefill
    from models.DPI.attention.kernels.tiles import Tiling

    torch.manual_seed(0)
    (row,) = plan_of(case, rope_of(case)).rows
    q, k, v = inputs_of(case)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    out = prefill.attend(q, k, v, row, scaling=SCALING, lse=lse)
    d_out = torch.randn_like(out)
    delta = backward.delta_of(d_out, out)
    given = (q, k, v, lse, delta, d_out, row)
    standard = backward.tilings(HEAD_DIM)
    table = Table("kernel", "queries", "keys", "warps", "stages", "ms", title=f"{case.name}, {case.keys:,} keys")
    for tiling in QUERY_TILINGS + KEY_TILINGS:
        of_queries = tiling in QUERY_TILINGS
        one = Tiling(*tiling)
        tiles = standard._replace(of_queries=one) if of_queries else standard._replace(of_keys=one)

        def run(tiles: backward.Tilings = tiles, of_queries: bool = of_queries) -> object:
            return backward.gradients(
                *given, scaling=SCALING, of_queries=of_queries, of_keys=not of_queries, tiles=tiles
            )

        try:
            found = f"{median(run):.3f}"
        except OutOfResources as error:
            found = str(error).splitlines()[0][:40]
        table.add_row("queries" if of_queries else "keys", *map(str, tiling), found)
    return table


def main(arguments: list[str] | None = None) -> int:
    """Run the cases and print a table. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.backward", description=__doc__)
    parser.add_argument("--impl", default="triton", choices=api.IMPLEMENTATIONS)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--tune", action="store_true", help="time tiles of several sizes instead, on the longest input")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("no CUDA device")
    chosen = [case for case in cases() if options.only in case.name]
    settings = f"bf16, {options.impl}"
    if options.tune:
        show(settings, tune(chosen[-1]))
        return 0
    results = [run_case(case, options.impl) for case in chosen]
    show(settings, table_of(results))
    keep(results, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
