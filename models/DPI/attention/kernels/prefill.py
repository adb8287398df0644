"""Attention over bands for many queries: one Triton kernel, one program for each tile of queries and head.

A program walks through its bands. In each, the key tiles that every query of the tile sees whole need no mask; those
on a boundary are masked, and are the only ones that two bands may both compute. Softmax is in base 2, on line.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.DPI.attention import cards
from models.DPI.attention.bands import Row
from models.DPI.attention.kernels.launching import on, power_of_2, readable
from models.DPI.attention.kernels.noise import (
    add_to_tile,
    deviates_of_tile,
    noise_factors,
    noise_tensors,
    rows_of_tile,
)
from models.DPI.attention.kernels.rotate import rotate_into
from models.DPI.attention.kernels.rows import load_rows, rows_of
from models.DPI.attention.kernels.softmax import capped, sink_of, softcap_factors
from models.DPI.attention.kernels.tiles import Tiling, load_tile, load_tile_band, prepare, record_of_tile, tiling
from models.DPI.attention.noise import POOL_SIZE, Noise
from models.DPI.attention.prepared import Launch, PrefillKey, PreparedPrefill

# What `prefill_hopper` is written for. The language it is written in changes from one Triton to the next; each of these
# was tested. Every band is code of its own.
_HOPPER_TILE, _HOPPER_BANDS, _HOPPER_TRITONS = Tiling(128, 128, 8, 3), 4, ((3, 6), (3, 9))
# Finite, so that a query that has seen no key yet gives no NaN.
_LOWEST = tl.constexpr(-1.0e30)
_LN2 = tl.constexpr(0.6931471805599453)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row: Row,
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    noise: Noise | None = None,
    layer: int = 0,
    lse: Tensor | None = None,
    rotate_keys: Callable[[Tensor, Tensor, Launch], None] | None = None,
) -> Tensor:
    """See `triton.attend`.

    rotate_keys: writes a launch's keys to their slots, (k, rotated, launch) as `_rotate_keys`, where they come from
    elsewhere; k then gives their shape alone. It is called ahead of each launch, and may write v ahead of the first.
    """
    batch, heads, num_queries, head_dim = q.shape
    kv_heads, num_keys = k.shape[1], k.shape[2]
    q, k, v = readable(q), readable(k), readable(v)
    out = torch.empty(batch, num_queries, heads, head_dim, dtype=q.dtype, device=q.device).transpose(1, 2)
    card = cards.card_of(q.device)
    factor, cap = softcap_factors(scaling, softcap)
    for_hopper = _is_for_hopper(q, row, cap)
    tile = _HOPPER_TILE if for_hopper else tiling(head_dim, num_queries, noise is not None, card)
    key = PrefillKey(q.device, batch * kv_heads, tile.queries)
    if key not in row.prepared:
        key_bytes = batch * kv_heads * num_keys * head_dim * k.element_size()
        row.prepared[key] = prepare(row, key_bytes, tile, q.device)
    prepared = row.prepared[key]
    noisy = 0 if noise is None else prepared.noisy
    pool, hash_keys = noise_tensors(noise if noisy else None, layer, heads, q.device)
    slope_factor, level_factor = noise_factors(noise)
    block_d = power_of_2(head_dim)
    rotated_q = rotate_queries(q, prepared, factor)
    rotated = k.new_empty(prepared.num_slots, batch, kv_heads, num_keys, head_dim)
    if for_hopper:
        from models.DPI.attention.kernels import prefill_hopper

        for launch in prepared.launches:
            (rotate_keys or _rotate_keys)(k, rotated, launch)
            prefill_hopper.launch(
                rotated_q,
                rotated,
                v,
                out,
                prepared,
                launch,
                lse=lse,
                sinks=sinks,
                pool=pool,
                hash_keys=hash_keys,
                factors=(slope_factor, level_factor),
            )
        return out
    queries = rows_of(rotated_q.flatten(0, 2), tile.queries, block_d, card.has_copy_engine)
    keys = rows_of(rotated.flatten(0, 2), tile.keys, block_d, card.has_copy_engine)
    values = rows_of(v, tile.keys, block_d, card.has_copy_engine)
    for launch in prepared.launches:
        (rotate_keys or _rotate_keys)(k, rotated, launch)
        num_tiles = launch.tiles.shape[0]
        with on(q.device):
            prefill_kernel[(num_tiles * heads * batch,)](
                queries,
                keys,
                values,
                out,
                lse,
                sinks,
                prepared.bounds,
                launch.tiles,
                pool,
                prepared.gates if noisy else None,
                hash_keys,
                prepared.std if noisy else None,
                out.stride(0),
                out.stride(1),
                out.stride(2),
                num_tiles,
                num_queries,
                heads,
                kv_heads,
                batch,
                num_keys - num_queries,
                cap,
                slope_factor,
                level_factor,
                GROUP=heads // kv_heads,
                BANDS=prepared.num_bands,
                NOISY=noisy,
                HALF=head_dim // 2,
                BLOCK_D=block_d,
                BM=tile.queries,
                BN=tile.keys,
                POOL=POOL_SIZE,
                WARPS=tile.warps,
                STAGES=tile.stages,
                num_warps=tile.warps,
                enable_fp_fusion=True,
            )
    return out


def _is_for_hopper(q: Tensor, row: Row, cap: float | None) -> bool:
    """Whether `prefill_hopper` computes it, faster, and without noise to the same bits."""
    num_bands = max(len(segment.bands) for segment in row.segments)
    if not q.is_cuda or cap is not None or num_bands > _HOPPER_BANDS:
        return False
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    card = cards.card_of(q.device)
    _, _, num_queries, head_dim = q.shape
    fits = tiling(head_dim, num_queries, noisy=False, card=card) == _HOPPER_TILE
    return card.has_warp_groups and version in _HOPPER_TRITONS and fits


def rotate_queries(q: Tensor, prepared: PreparedPrefill, factor: float) -> Tensor:
    """Queries by each band's table, (bands, B, H, T, D)."""
    rotated = torch.empty(prepared.num_bands, *q.shape, dtype=q.dtype, device=q.device)
    for band in range(prepared.num_bands):
        tables = prepared.cos[band], prepared.sin[band]
        rotate_into(rotated[band], q, *tables, 0, q.shape[2], factor, prepared.rest[band])
    return rotated


def _rotate_keys(k: Tensor, rotated: Tensor, launch: Launch) -> None:
    """Each table's keys to its slot of `rotated` (slots, B, Hkv, N, D)."""
    for slot, (table, low, high) in enumerate(launch.tables):
        if low < high:
            rotate_into(rotated[slot], k, *table.of_keys(high, k.device), low, high)


@triton.jit
def _accumulate(
    x,
    acc,
    top,
    total,
    values,
    batch,
    kv_head,
    first_key,
    BN: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Add a tile of logits x (BM, BN) and its values to the running softmax."""
    new_top = tl.maximum(top, tl.max(x, 1))
    p = tl.exp2(x - new_top[:, None])
    shrink = tl.exp2(top - new_top)
    total = total * shrink + tl.sum(p, 1)
    acc = acc * shrink[:, None]
    v = load_rows(values, (batch, kv_head), first_key, 0, BN, BLOCK_D, HEAD_DIM)
    return tl.dot(p.to(v.dtype), v, acc), new_top, total


@triton.jit
def _add_tiles(
    acc,
    top,
    total,
    q_tile,
    keys,
    values,
    key_plane,
    batch,
    kv_head,
    low,
    low_whole,
    high_whole,
    high,
    cap,
    start,
    stop,
    pool,
    rows,
    within,
    index,
    slope,
    level,
    period,
    pattern,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    POOL: tl.constexpr,
    WARPS: tl.constexpr,
    NOISY: tl.constexpr,
    MASKED: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Add key tiles of a band to the running softmax: the whole ones, or those on a boundary.

    low ... high: the band's tiles; low_whole ... high_whole: those that every query sees whole.
    """
    if MASKED:
        skipped = tl.maximum(high_whole - low_whole, 0)
        first, last = low, high - skipped
    else:
        skipped = 0
        first, last = low_whole, high_whole
    for number in tl.range(first, last, num_stages=STAGES):
        tile = number
        if MASKED:
            tile = tl.where(number >= low_whole, number + skipped, number)
        first_key = tile * BN
        if NOISY:
            deviate = deviates_of_tile(pool, rows, within, first_key, period, BM, BN, WARPS, POOL)
        k = load_rows(keys, (key_plane,), first_key, 0, BN, BLOCK_D, HEAD_DIM)
        x = capped(tl.dot(q_tile, k.T), cap)
        if NOISY:
            x = add_to_tile(x, deviate, index, first_key, slope, level, period, pattern, BM, BN, WARPS)
        if MASKED:
            key = first_key + tl.arange(0, BN)
            x = tl.where((key[None, :] >= start[:, None]) & (key[None, :] < stop[:, None]), x, float("-inf"))
        acc, top, total = _accumulate(x, acc, top, total, values, batch, kv_head, first_key, BN, BLOCK_D, HEAD_DIM)
    return acc, top, total


@triton.jit(do_not_specialize=["num_tiles", "num_queries", "batch_size", "past"])
def prefill_kernel(
    queries,
    keys,
    values,
    out,
    lse,
    sinks,
    bounds,
    tiles,
    pool,
    gates,
    hash_keys,
    std,
    out_batch,
    out_head,
    out_token,
    num_tiles,
    num_queries,
    num_heads,
    num_kv_heads,
    batch_size,
    past,
    cap,
    slope_factor,
    level_factor,
    GROUP: tl.constexpr,
    BANDS: tl.constexpr,
    NOISY: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    POOL: tl.constexpr,
    WARPS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """See `attend`. queries: rotated, (BANDS * B * H, T, D), times the first of `softcap_factors`, whose second is cap;
    keys: rotated, (slots * B * Hkv, N, D); bounds, tiles, gates, std: see `prepared`; NOISY: a bit for each band.
    """
    # All tiles and query heads of one key head run side by side, so that its keys stay in the L2 cache.
    pid = tl.program_id(0)
    plane = pid // (num_tiles * GROUP)
    rest = pid % (num_tiles * GROUP)
    batch, kv_head = plane // num_kv_heads, plane % num_kv_heads
    head = kv_head * GROUP + rest % GROUP
    record = record_of_tile(tiles, rest // GROUP, BANDS)
    tile = load_tile(record)

    # Rows beyond the tile's end repeat its last query and are not written.
    row = tile.first + tl.arange(0, BM)
    written = row < tile.end
    row = tl.minimum(row, tile.end - 1)
    acc = tl.zeros([BM, BLOCK_D], tl.float32)
    top = tl.full([BM], _LOWEST, tl.float32)
    total = tl.zeros([BM], tl.float32)
    if sinks is not None:
        top = tl.zeros([BM], tl.float32) + sink_of(sinks, head)
        total += 1.0
    index = row + past
    rows, within, slope, level = row, row, row.to(tl.float32), row.to(tl.float32)
    if NOISY:
        rows, within = rows_of_tile(hash_keys, head, tile.first, tile.end, past, BM, WARPS)
        deviation = tl.load(std + row)
        slope = deviation * slope_factor
        level = deviation * level_factor

    for band in tl.static_range(BANDS):
        starts = bounds + band * num_queries
        stops = bounds + (BANDS + band) * num_queries
        low, low_end = tl.load(starts + tile.first), tl.load(starts + tile.end - 1)
        high_start, high = tl.load(stops + tile.first), tl.load(stops + tile.end - 1)
        if low < high:
            start, stop = tl.load(starts + row), tl.load(stops + row)
            of_band = load_tile_band(record, band)
            period, pattern = 1, tl.cast(0, tl.int64)
            if (NOISY >> band) & 1:
                gate = gates + 2 * of_band.gate
                period, pattern = tl.load(gate).to(tl.int32), tl.load(gate + 1)
            q_plane = (band * batch_size + batch) * num_heads + head
            q_tile = load_rows(queries, (q_plane,), tile.first, 0, BM, BLOCK_D, 2 * HALF)
            key_plane = (of_band.slot * batch_size + batch) * num_kv_heads + kv_head
            first_tile, end_tile = low // BN, (high + BN - 1) // BN
            first_whole = tl.minimum((low_end + BN - 1) // BN, end_tile)
            end_whole = tl.maximum(high_start // BN, first_whole)
            for masked in tl.static_range(2):
                acc, top, total = _add_tiles(
                    acc,
                    top,
                    total,
                    q_tile,
                    keys,
                    values,
                    key_plane,
                    batch,
                    kv_head,
                    first_tile,
                    first_whole,
                    end_whole,
                    end_tile,
                    cap,
                    start,
                    stop,
                    pool,
                    rows,
                    within,
                    index,
                    slope,
                    level,
                    period,
                    pattern,
                    BM,
                    BN,
                    BLOCK_D,
                    2 * HALF,
                    POOL,
                    WARPS,
                    (NOISY >> band) & 1,
                    masked,
                    STAGES,
                )

    acc = acc / tl.where(total > 0, total, 1.0)[:, None]  # a query that sees no key gives 0
    d = tl.arange(0, BLOCK_D)
    row = row.to(tl.int64)
    target = out + batch.to(tl.int64) * out_batch + head.to(tl.int64) * out_head + row[:, None] * out_token + d[None, :]
    tl.store(target, acc.to(out.dtype.element_ty), mask=written[:, None] & (d < 2 * HALF)[None, :])
    if lse is not None:
        place_of_row = (batch * num_heads + head).to(tl.int64) * num_queries + row
        tl.store(lse + place_of_row, (top + tl.log2(total)) * _LN2, mask=written)
