"""Attention over bands in fused Triton kernels: one launch for many queries, one for a token to decode.

This module prepares what the kernels read. Nothing here or in the kernels touches logits in memory, and per token
and layer nothing of the cache's length happens outside them. Triton itself is imported when first needed.
"""

import contextlib
import functools
import importlib.util
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from models.DPI.attention import noise as noise_module
from models.DPI.attention.bands import Band, Plan, Segment
from models.DPI.attention.noise import POOL_SIZE, Noise
from models.DPI.attention.triton_work import (
    DECODE_KEYS,
    Prepared,
    PreparedOne,
    power_of_2,
    prepare,
    prepare_one,
    tiling,
)

HEAD_DIMS = (64, 80, 96, 128, 256)
DTYPES = (torch.bfloat16, torch.float16)
_LOG2E = math.log2(math.e)
_SHARED_MEMORY = 227 << 10
# Deviates that a block may read beyond the pool's end.
_POOL_MARGIN = 256
# The number of programs that recorded launches have room for is a multiple of this, and never falls.
_SPLITS_MULTIPLE = 4


def obstacle(q: Tensor, plan: Plan) -> str | None:
    """Why these queries and bands cannot run here, or None."""
    if q.device.type != "cuda":
        return f"it needs a CUDA device, and the tensors are on {q.device.type}"
    if torch.version.hip is not None:
        return "it is written for NVIDIA's GPUs"
    if not _is_installed():
        return "the package triton is not installed"
    if _capability(q.device) < (9, 0):
        return "it needs a GPU of compute capability 9.0 (Hopper) or later"
    if _shared_memory(q.device) < _SHARED_MEMORY:
        return f"its tiles need {_SHARED_MEMORY >> 10} KiB of shared memory, more than this GPU has"
    if q.dtype not in DTYPES:
        return f"its tensor cores take bfloat16 and float16, and the queries are {q.dtype}"
    if q.shape[-1] not in HEAD_DIMS:
        return f"head_dim = {q.shape[-1]} is not one of {', '.join(map(str, HEAD_DIMS))}"
    for row in plan.rows[:1]:
        rotary_dim = row.segments[0].bands[0].frequencies.rotary_dim
        if rotary_dim != q.shape[-1]:
            return f"only {rotary_dim} of head_dim = {q.shape[-1]} components are rotary"
    if plan.noise is not None and plan.noise.needs_row_statistics:
        return "noise with scale_mean = 1 or scale_max = 1 needs a row's statistics first"
    return None


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Sequence[Segment],
    *,
    scaling: float,
    noise: Noise | None = None,
    layer: int = 0,
    lse: Tensor | None = None,
) -> Tensor:
    """Attention of many queries of rows that share their padding.

    q: (B, H, T, D), the last T of N tokens; k, v: (B, Hkv, N, D), bf16 or fp16, un-rotated.
    segments: cover queries N - T ... N - 1. lse: (B, H, T) fp32, contiguous, receives the log-sum-exps.
    Returns (B, H, T, D), contiguous as (B, T, H, D).
    """
    batch, heads, num_queries, head_dim = q.shape
    kv_heads, num_keys = k.shape[1], k.shape[2]
    q, k, v = (x if _is_readable(x) else x.contiguous() for x in (q, k, v))
    out = torch.empty(batch, num_queries, heads, head_dim, dtype=q.dtype, device=q.device).transpose(1, 2)
    tile = tiling(head_dim, num_queries, noise is not None)
    memo = segments[0].memo
    slot = ("prefill", q.device, batch * kv_heads, len(segments), tile.queries)
    if slot not in memo:
        memo[slot] = prepare(segments, batch * kv_heads * num_keys * head_dim * k.element_size(), tile, q.device)
    prepared: Prepared = memo[slot]
    noisy = 0 if noise is None else prepared.noisy
    pool, hash_keys = _noise_tensors(noise if noisy else None, layer, heads, q.device)
    block_d = power_of_2(head_dim)
    turned_q = _turn_queries(q, prepared, scaling * _LOG2E)
    turned = k.new_empty(prepared.num_slots, batch, kv_heads, num_keys, head_dim)
    queries = _descriptor(turned_q.flatten(0, 2), [1, tile.queries, block_d])
    keys = _descriptor(turned.flatten(0, 2), [1, tile.keys, block_d])
    values = _descriptor(v, [1, 1, tile.keys, block_d])
    for launch in prepared.launches:
        _turn_keys(k, turned, launch.tables)
        with _on(q.device):
            _kernels().prefill[(launch.tiles.shape[0] * heads * batch,)](
                queries, keys, values, out, lse, prepared.bounds, launch.tiles,
                pool, prepared.gates if noisy else None, hash_keys, prepared.std if noisy else None,
                out.stride(0), out.stride(1), out.stride(2),
                launch.tiles.shape[0], num_queries, heads, kv_heads, batch,
                num_keys - num_queries, *_noise_factors(noise),
                GROUP=heads // kv_heads, BANDS=prepared.num_bands, NOISY=noisy, HALF=head_dim // 2,
                BLOCK_D=block_d, BM=tile.queries, BN=tile.keys, POOL=POOL_SIZE, WARPS=tile.warps,
                STAGES=tile.stages, num_warps=tile.warps, enable_fp_fusion=True,
            )  # fmt: skip
    return out


def attend_one(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, *, scaling: float, layer: int = 0, lse: Tensor | None = None
) -> Tensor:
    """Attention of a decoding step: one query in every row of the batch, whatever its padding, in one launch.

    q: (B, H, 1, D); k, v: (B, Hkv, N, D) with the padding. lse: (B, H, 1) fp32, contiguous.
    Returns (B, H, 1, D); rows of the batch that the plan leaves out are 0.
    """
    batch, heads, _, head_dim = q.shape
    kv_heads = k.shape[1]
    slot = _decoding_slot(q.device, heads)
    memo = plan.rows[0].segments[0].memo
    if slot not in memo:
        memo[slot] = prepare_one(plan, batch, heads, kv_heads, head_dim, q.device)
    prepared: PreparedOne = memo[slot]
    q, k, v = (x if _is_readable(x) else x.contiguous() for x in (q, k, v))
    noise = plan.noise if prepared.noisy else None
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    with _on(q.device):
        _kernels().decode[prepared.work.shape[1], batch * kv_heads](
            q, _descriptor(k, [1, 1, DECODE_KEYS, prepared.block_half]),
            _descriptor(v, [1, 1, DECODE_KEYS, prepared.block_d]), out, lse,
            prepared.work, prepared.numbers, prepared.parts, prepared.log_totals, prepared.arrivals,
            *_noise_tensors(noise, layer, heads, q.device),
            q.stride(0), q.stride(1), out.stride(0), out.stride(1),
            prepared.work.shape[1], kv_heads, scaling * _LOG2E, *_noise_factors(noise),
            **prepared.options,
        )  # fmt: skip
    return out


def prepare_step(
    plan: Plan, batch: int, heads: int, kv_heads: int, head_dim: int, device: torch.device, previous: PreparedOne | None
) -> PreparedOne:
    """Prepare `attend_one` for a plan ahead of the first layer, in the tensors of a previous step where they fit.

    Launches that were recorded for that step then compute this one.
    """
    prepared = prepare_one(plan, batch, heads, kv_heads, head_dim, device, previous=previous, multiple=_SPLITS_MULTIPLE)
    plan.rows[0].segments[0].memo[_decoding_slot(device, heads)] = prepared
    return prepared


def _decoding_slot(device: torch.device, heads: int) -> tuple[str, torch.device, int]:
    return "decode", device, heads


def _turn_queries(q: Tensor, prepared: Prepared, factor: float) -> Tensor:
    """Queries by each band's table, (bands, B, H, T, D)."""
    turned = torch.empty(prepared.num_bands, *q.shape, dtype=q.dtype, device=q.device)
    for band in range(prepared.num_bands):
        _kernels().turn(q, prepared.cos[band], prepared.sin[band], turned[band], 0, q.shape[2], factor)
    return turned


def _turn_keys(k: Tensor, turned: Tensor, tables: tuple[tuple[Band, int, int], ...]) -> None:
    """Each table's keys to its slot of `turned` (slots, B, Hkv, N, D)."""
    for slot, (band, low, high) in enumerate(tables):
        if low < high:
            _kernels().turn(k, *band.key_tables(high, k.device), turned[slot], low, high)


@functools.lru_cache
def _is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@functools.lru_cache
def _shared_memory(device: torch.device) -> int:
    properties: Any = torch.cuda.get_device_properties(device)
    return properties.shared_memory_per_block_optin


@functools.lru_cache(maxsize=8)
def _pool(kind: str, device: torch.device) -> Tensor:
    """The noise's pool with its beginning repeated at the end, so that no block wraps."""
    values = noise_module.pool(kind, device)
    return torch.cat((values, values[:_POOL_MARGIN]))


@functools.lru_cache(maxsize=1024)
def _head_keys(seed: int, layer: int, heads: int, device: torch.device) -> Tensor:
    """(heads,) int32 with the bits of `noise.head_keys`."""
    keys = noise_module.head_keys(seed, layer, heads)
    return torch.where(keys >= 1 << 31, keys - (1 << 32), keys).to(torch.int32).to(device)


def _noise_tensors(
    noise: Noise | None, layer: int, heads: int, device: torch.device
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """The pool and the heads' hash keys."""
    return (None, None) if noise is None else (_pool(noise.kind, device), _head_keys(noise.seed, layer, heads, device))


def _noise_factors(noise: Noise | None) -> tuple[float, float]:
    """In units of base-2 logits: on the deviation a unit of distance, and on the deviation itself."""
    if noise is None:
        return 0.0, 0.0
    return (_LOG2E, 0.0) if noise.scale_std else (0.0, _LOG2E)


def _is_readable(x: Tensor) -> bool:
    """Whether the copy engine can read it: rows of 16-byte multiples, contiguous, at a 16-byte boundary."""
    batch, head, token, one = x.stride()
    return one == 1 and not (batch % 8 or head % 8 or token % 8 or x.data_ptr() % 16) and batch * head * token != 0


@functools.cache
def _kernels() -> SimpleNamespace:
    """What needs Triton, imported when first used."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    from models.DPI.attention.triton_decode import decode_kernel
    from models.DPI.attention.triton_prefill import prefill_kernel
    from models.DPI.attention.triton_rotate import turn

    return SimpleNamespace(prefill=prefill_kernel, decode=decode_kernel, turn=turn, TensorDescriptor=TensorDescriptor)


def _descriptor(x: Tensor, block: list[int]) -> Any:
    return _kernels().TensorDescriptor(x, x.shape, x.stride(), block)


def _on(device: torch.device) -> contextlib.AbstractContextManager:
    """Kernels are launched on the current device."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)
