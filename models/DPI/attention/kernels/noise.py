"""Noise in the fused kernels: what they read of `attention.noise`, and how they find a logit's deviate.

In prefill a tile of logits (queries, keys) is that of a matrix product; in decoding it is (warps, keys, heads).
"""

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.DPI.attention import noise as noise_module
from models.DPI.attention.bands import EVERY_KEY, Band, Segment
from models.DPI.attention.noise import Noise

LOG2E = math.log2(math.e)


@functools.lru_cache(maxsize=1024)
def _head_keys(seed: int, layer: int, heads: int, device: torch.device) -> Tensor:
    """(heads,) int32 with the bits of `noise.head_keys`. Four bytes per head, of numbers alone: nothing of a model."""
    keys = noise_module.head_keys(seed, layer, heads)
    return torch.where(keys >= 1 << 31, keys - (1 << 32), keys).to(torch.int32).to(device)


def noise_tensors(
    noise: Noise | None, layer: int, heads: int, device: torch.device
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """The pool, its beginning repeated at the end so that no block wraps, and the heads' hash keys."""
    if noise is None:
        return None, None
    return noise_module.pool_and_margin(noise.kind, device), _head_keys(noise.seed, layer, heads, device)


def noise_factors(noise: Noise | None) -> tuple[float, float]:
    """In units of base-2 logits: on the deviation per unit of distance, and on the deviation itself."""
    if noise is None:
        return 0.0, 0.0
    return (LOG2E, 0.0) if noise.scale_std else (0.0, LOG2E)


def period_of(segment: Segment, band: Band) -> int | None:
    """The band's noise period, None where no key gets noise."""
    return None if segment.noise_std is None else band.noise_period


def gates_of(periods: list[int | None], device: torch.device) -> Tensor:
    """(periods, 2) int64: the period, and a bit for each of 64 keys, set where a key gets no noise."""
    rows = []
    for period in periods:
        if period is None or period == EVERY_KEY:
            rows.append([1, -1 if period is None else 0])
        else:
            pattern = sum(1 << key for key in range(0, 64, period))
            rows.append([period, pattern - (1 << 64) if pattern >> 63 else pattern])
    return torch.tensor(rows).to(device)


@triton.jit
def mix(x):
    """`noise.mix` on uint32."""
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def rows_of_tile(hash_keys, head, first, end, past, BM: tl.constexpr, WARPS: tl.constexpr):
    """Of a prefill tile's queries, in the order in which `deviates_of_tile` reads, (8, WARPS, 2, BM / (16 WARPS)):
    their hashes, and their places in a block of the pool.
    """
    rows = tl.arange(0, 8)[:, None, None, None] + tl.arange(0, WARPS)[None, :, None, None] * 16
    rows += tl.arange(0, 2)[None, None, :, None] * 8
    rows += tl.arange(0, BM // (16 * WARPS))[None, None, None, :] * (16 * WARPS)
    index = tl.minimum(first + rows, end - 1) + past
    hashed = tl.load(hash_keys + head).to(tl.uint32, bitcast=True)
    return mix(hashed ^ mix((index // 8).to(tl.uint32))), (index & 7) * 32


@triton.jit
def deviates_of_tile(
    pool,
    rows,
    within,
    first_key,
    period,
    BM: tl.constexpr,
    BN: tl.constexpr,
    WARPS: tl.constexpr,
    POOL: tl.constexpr,
):
    """Deviates of keys first_key ..., a multiple of 32, as `add_to_tile` takes them.

    Read in a shape whose dimensions are the lanes of a warp, the warps and the registers of a matrix product, so that
    every thread reads its own deviates, a warp reads 512 bytes in a row, and none moves between threads.
    """
    # In a branch, always taken, the compiler leaves the load as it is; elsewhere it would copy the pool into
    # shared memory, past the L1 cache.
    deviate = tl.zeros([4, 8, WARPS, 2, BM // (16 * WARPS), BN // 32, 8], tl.float16)
    if period > 0:
        block = (first_key // 32).to(tl.uint32) + tl.arange(0, BN // 32).to(tl.uint32)
        at = (mix(rows[:, :, :, :, None] + block[None, None, None, None, :]) & (POOL - 8)).to(tl.int32)
        at += within[:, :, :, :, None]  # (8, WARPS, 2, repeats, blocks)
        at = tl.arange(0, 4)[:, None, None, None, None, None, None] * 8 + at[None, :, :, :, :, :, None]
        at += tl.arange(0, 8)[None, None, None, None, None, None, :]
        at = tl.max_contiguous(tl.multiple_of(at, [1, 1, 1, 1, 1, 1, 8]), [1, 1, 1, 1, 1, 1, 8])
        deviate = tl.load(pool + at)
    return deviate


@triton.jit
def _in_place(deviate, BM: tl.constexpr, BN: tl.constexpr, WARPS: tl.constexpr):
    """(BM, BN) fp16 deviates where a matrix product has its logits."""
    deviate = deviate.reshape(4, 8, WARPS, 2, BM // (16 * WARPS), BN // 32, 4, 2)
    return deviate.permute(4, 2, 3, 1, 5, 6, 0, 7).reshape(BM, BN)


@triton.jit
def _without_noise(first_key, period, pattern):
    """64 bits: which of the keys first_key ... are multiples of the period. pattern: the same for first_key = 0."""
    past = first_key % period
    ahead = tl.where(past > 0, period - past, 0).to(tl.int64)
    return tl.where(ahead < 64, pattern << (ahead & 63), 0)


@triton.jit
def add_to_tile(
    x,
    deviate,
    index,
    first_key,
    slope,
    level,
    period,
    pattern,
    BM: tl.constexpr,
    BN: tl.constexpr,
    WARPS: tl.constexpr,
):
    """Logits (BM, BN) with noise. A thread of a matrix product holds columns 8m + 2t + e of its t: parts of columns
    that depend on t alone are kept apart, so that the others are constants of the code.
    """
    deviate = _in_place(deviate, BM, BN, WARPS)
    column = tl.arange(0, BN)
    of_thread, constant = column & 6, column & ~6
    distance = level + slope * (index - first_key).to(tl.float32)
    distance = distance[:, None] - slope[:, None] * of_thread.to(tl.float32)[None, :]
    distance -= slope[:, None] * constant.to(tl.float32)[None, :]
    closed = _without_noise(first_key, period, pattern)
    if BN > 64:
        closed = tl.where(column < 64, closed, _without_noise(first_key + 64, period, pattern))
    closed = ((closed >> of_thread.to(tl.int64)) >> (constant & 63).to(tl.int64)) & 1
    return tl.where(closed[None, :] == 0, x + deviate.to(tl.float32) * distance, x)


@triton.jit
def noise_of_query(pool, rows, index, key, slope, level, period, POOL: tl.constexpr):
    """Noise of a decoding tile (warps, keys, heads), as `noise.draw`; period as `Band.noise_period`, -1 for none."""
    place = (mix(rows[None, None, :] + (key // 32).to(tl.uint32)[:, :, None]) & (POOL - 8)).to(tl.int32)
    slot = 32 * (index & 7) + 8 * (key % 8 // 2) + 2 * (key % 32 // 8) + key % 2
    deviate = tl.load(pool + place + slot[:, :, None]).to(tl.float32)
    open_key = (period == 0) | ((period > 0) & (key % tl.maximum(period, 1) != 0))
    return tl.where(open_key[:, :, None], deviate * (level + slope * (index - key).to(tl.float32))[:, :, None], 0.0)
