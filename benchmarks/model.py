"""Speed and memory of methods on a whole model beside the stock model: python -m benchmarks.model

The model has Llama-3-8B's shape and random weights. Prefill is one forward pass over the prompt with a cache, decoding
the steps after it, both by the clock on the wall; the stock model attends through PyTorch's SDPA, once as that chooses
and once through its FlashAttention. Where the fused kernels run, decoding steps are replayed, see
`models/DPI/patches/decoding.py`: with the default dynamic cache, and with a static one ("recorded"). "One by one" they
are not, because somebody watches the layers.
"""

import argparse
import statistics
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Cache, DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from benchmarks.machine import keep, show
from models.DPI.methods import METHODS, build_method
from models.DPI.patches.Llama import install, uninstall

WINDOW = 8192
# Tokens that are not timed: kernels are compiled, and steps recorded.
WARM_UP = 6
# Method, what is said of its parameters behind its label, parameters.
SETTINGS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("dpi", " chunk-free", {"chunk_coe": 1, "local_window": 2048}),
    ("dpi", " chunk-free, recorded", {"chunk_coe": 1, "local_window": 2048}),
    ("dpi", " chunk-free, one by one", {"chunk_coe": 1, "local_window": 2048}),
    ("dpi", " chunks of 3,000", {"chunk_coe": 3000, "local_window": 128}),
    ("dpi", " chunks of 3,000, noise", {"chunk_coe": 3000, "local_window": 128, "noise_type": "gaussian"}),
    ("repro_se", "", {"group_size": 32, "window_size": 2048}),
    ("repro_chunkllama", "", {}),
    ("repro_ntk", "", {"factor": 16.0}),
    ("repro_dynamic_ntk", "", {"factor": 16.0}),
    ("repro_yarn", "", {"factor": 16.0}),
    ("repro_original", "", {}),
)


@dataclass(frozen=True)
class Result:
    """prefill in seconds, decoding in milliseconds per token, memory: the peak in GiB, of it over the weights."""

    name: str
    prefill: float
    decoding: float
    peak: float
    over_weights: float


def build_model(layers: int) -> LlamaForCausalLM:
    """Llama-3-8B's shape, bf16, random weights, on the GPU."""
    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=WINDOW,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model.set_attn_implementation("sdpa")
    model.eval()
    return model


@torch.no_grad()
def measure(name: str, model: LlamaForCausalLM, ids: Tensor, steps: int, repeats: int) -> Result:
    """Medians over `repeats` prefills after a first one, and over `steps` tokens after the first ones."""
    room = ids.shape[1] + steps + WARM_UP
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    prefills = []
    peak = 0
    for repeat in range(repeats + 1):
        cache: Cache = DynamicCache(config=model.config)
        if "recorded" in name:
            cache = StaticCache(config=model.config, max_cache_len=room)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        out = model(ids, past_key_values=cache, logits_to_keep=1)
        torch.cuda.synchronize()
        prefills.append(time.perf_counter() - start)
        peak = torch.cuda.max_memory_allocated()
        if repeat < repeats:
            del out, cache  # or the next peak would hold two caches
    token = out.logits[:, -1:].argmax(-1)
    times = []
    watcher = model.model.layers[0].register_forward_hook(lambda *_: None) if "one by one" in name else nullcontext()
    with watcher:
        for _ in range(steps + WARM_UP):
            start = time.perf_counter()
            token = model(token, past_key_values=cache).logits[:, -1:].argmax(-1)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    gib = 1 << 30
    return Result(
        name,
        statistics.median(prefills[1:]),
        statistics.median(times[WARM_UP:]) * 1e3,
        peak / gib,
        (peak - weights) / gib,
    )


def table_of(results: list[Result]) -> Table:
    """The methods, relative to the first line, the stock model."""
    table = Table("method", "prefill s", "", "decoding ms/token", "", "peak GiB", "", "over weights GiB", "")
    stock = results[0]
    for r in results:
        row = [r.name]
        for key, digits in (("prefill", 3), ("decoding", 2), ("peak", 2), ("over_weights", 2)):
            value = getattr(r, key)
            row += [f"{value:.{digits}f}", f"{value / getattr(stock, key):.2f}x"]
        table.add_row(*row)
    return table


def main(arguments: list[str] | None = None) -> int:
    """Run the methods and print a table. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model", description=__doc__)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--length", type=int, default=32_768, help="tokens of the prompt")
    parser.add_argument("--steps", type=int, default=24, help="tokens to decode")
    parser.add_argument("--repeats", type=int, default=3, help="prefills")
    parser.add_argument("--only", default="", help="methods whose name contains this")
    parser.add_argument("--no-stock", action="store_true", help="leave the stock model out")
    parser.add_argument("--attn-impl", default="auto")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("no CUDA device")
    model = build_model(options.layers)
    ids = torch.randint(0, 128_000, (1, options.length), device="cuda")
    results = []
    if not options.no_stock:
        results.append(measure("stock, SDPA", model, ids, options.steps, options.repeats))
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            results.append(measure("stock, FlashAttention", model, ids, options.steps, options.repeats))
    for method, said, params in SETTINGS:
        name = METHODS[method].label + said
        if options.only not in name:
            continue
        target = options.length + options.steps + WARM_UP
        install(model, build_method(method, params, WINDOW, target), WINDOW, attn_impl=options.attn_impl)
        results.append(measure(name, model, ids, options.steps, options.repeats))
        uninstall(model)
    show(f"bf16, {options.layers} layers, {options.length:,} tokens, W = {WINDOW:,}", table_of(results))
    keep(results, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
