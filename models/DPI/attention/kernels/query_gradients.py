"""The gradient of queries: a Triton kernel with a program for each tile of queries and head, see `backward`."""

import triton
import triton.language as tl

from models.DPI.attention.kernels.noise import LOG2E
from models.DPI.attention.kernels.rotate import load_halves, turn_back
from models.DPI.attention.kernels.softmax import before_cap, capped
from models.DPI.attention.kernels.tiles import load_tile, load_tile_band, record_of_tile

_LOG2E = tl.constexpr(LOG2E)


@triton.jit
def _add_keys(
    low,
    high,
    q_low,
    q_high,
    d_out,
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
    lse,
    delta,
    start,
    stop,
    BN: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASKED: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Add to the gradient of rotated queries, (BM, BLOCK_HALF) for each half, what comes from tiles of keys.

    The tiles: see `prefill._add_tiles`.
    """
    skipped = end_whole - first_whole
    if MASKED:
        begin, end = first_tile, end_tile - skipped
    else:
        begin, end = first_whole, end_whole
    for number in tl.range(begin, end, num_stages=STAGES):
        tile = number
        if MASKED:
            tile = tl.where(number >= first_whole, number + skipped, number)
        first_key = tile * BN
        k_low, k_high = load_halves(keys, key_plane, first_key, BN, BLOCK_HALF)
        x = capped(tl.dot(q_high, k_high.T, tl.dot(q_low, k_low.T)), cap)
        p = tl.exp2(x - lse[:, None])
        if MASKED:
            key = first_key + tl.arange(0, BN)
            p = tl.where((key[None, :] >= start[:, None]) & (key[None, :] < stop[:, None]), p, 0.0)
        v = values.load([batch, kv_head, first_key, 0]).reshape(BN, BLOCK_D)
        dx = before_cap(p * (tl.dot(d_out, v.T) - delta[:, None]), x, cap).to(k_low.dtype)
        low = tl.dot(dx, k_low, low)
        high = tl.dot(dx, k_high, high)
    return low, high


@triton.jit(do_not_specialize=["num_tiles", "num_queries", "batch_size"])
def query_kernel(
    queries,
    keys,
    values,
    d_outs,
    dq,
    lse,
    delta,
    bounds,
    cos,
    sin,
    tiles,
    dq_batch,
    dq_head,
    dq_token,
    num_tiles,
    scaling,
    num_queries,
    num_heads,
    num_kv_heads,
    batch_size,
    cap,
    GROUP: tl.constexpr,
    BANDS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The gradient of queries. A program takes the queries that one of `prefill_kernel` takes, and the arguments of
    the same names; queries, keys: by halves. lse, delta: (B, H, T) fp32.
    """
    pid = tl.program_id(0)
    plane = pid // (num_tiles * GROUP)
    rest = pid % (num_tiles * GROUP)
    batch, kv_head = plane // num_kv_heads, plane % num_kv_heads
    head = kv_head * GROUP + rest % GROUP
    record = record_of_tile(tiles, rest // GROUP, BANDS)
    tile = load_tile(record)

    row = tile.first + tl.arange(0, BM)
    written = row < tile.end
    row = tl.minimum(row, tile.end - 1)
    place_of_row = (batch * num_heads + head).to(tl.int64) * num_queries + row
    row_lse = tl.load(lse + place_of_row) * _LOG2E
    row_delta = tl.load(delta + place_of_row)
    d_out = d_outs.load([batch, head, tile.first, 0]).reshape(BM, BLOCK_D)
    d = tl.arange(0, BLOCK_HALF)
    low = tl.zeros([BM, BLOCK_HALF], tl.float32)
    high = tl.zeros([BM, BLOCK_HALF], tl.float32)

    for band in tl.static_range(BANDS):
        starts = bounds + band * num_queries
        stops = bounds + (BANDS + band) * num_queries
        low_key, low_end = tl.load(starts + tile.first), tl.load(starts + tile.end - 1)
        high_start, high_key = tl.load(stops + tile.first), tl.load(stops + tile.end - 1)
        if low_key < high_key:
            table = (band * num_queries + row).to(tl.int64)[:, None] * HALF + d[None, :]
            if band > 0:
                # The sum so far as if it were of this band's rotated queries: turning it back gives it again.
                c = tl.load(cos + table, mask=(d < HALF)[None, :], other=1.0)
                s = tl.load(sin + table, mask=(d < HALF)[None, :], other=0.0)
                most = tl.maximum(tl.abs(c), tl.abs(s))  # a temperature may be so small that its square is 0
                c, s = c / most, s / most
                inverse = 1.0 / (most * (c * c + s * s))
                low, high = turn_back(low * inverse, high * inverse, c, -s)
            start, stop = tl.load(starts + row), tl.load(stops + row)
            of_band = load_tile_band(record, band)
            q_plane = (band * batch_size + batch) * num_heads + head
            q_low, q_high = load_halves(queries, q_plane, tile.first, BM, BLOCK_HALF)
            key_plane = (of_band.slot * batch_size + batch) * num_kv_heads + kv_head
            first_tile, end_tile = low_key // BN, (high_key + BN - 1) // BN
            first_whole = tl.minimum((low_end + BN - 1) // BN, end_tile)
            end_whole = tl.maximum(high_start // BN, first_whole)
            for masked in tl.static_range(2):
                low, high = _add_keys(
                    low,
                    high,
                    q_low,
                    q_high,
                    d_out,
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
                    row_lse,
                    row_delta,
                    start,
                    stop,
                    BN,
                    BLOCK_HALF,
                    BLOCK_D,
                    masked,
                    STAGES,
                )
            # Read again: kept, the table would take registers of the loops.
            c = tl.load(cos + table, mask=(d < HALF)[None, :], other=1.0, volatile=True)
            s = tl.load(sin + table, mask=(d < HALF)[None, :], other=0.0, volatile=True)
            low, high = turn_back(low, high, c, s)

    row = row.to(tl.int64)
    target = dq + batch.to(tl.int64) * dq_batch + head.to(tl.int64) * dq_head + row[:, None] * dq_token + d[None, :]
    inside = written[:, None] & (d < HALF)[None, :]
    tl.store(target, (low * scaling).to(dq.dtype.element_ty), mask=inside)
    tl.store(target + HALF, (high * scaling).to(dq.dtype.element_ty), mask=inside)
