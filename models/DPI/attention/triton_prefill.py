"""Attention over bands for many queries: one Triton kernel, one program for each tile of queries and head.

A program walks through its bands. In each, the key tiles that every query of the tile sees whole need no mask; those
on a boundary are masked, and are the only ones that two bands may both compute. Softmax is in base 2, on line.
"""

import triton
import triton.language as tl

# Finite, so that a query that has seen no key yet gives no NaN.
_LOWEST = tl.constexpr(-1.0e30)
_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def mix(x):
    """`noise.mix` on uint32."""
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _turned_query(q, cos, sin, row, row_stride, factor, HALF: tl.constexpr, BLOCK_D: tl.constexpr):
    """A tile of queries (rows, BLOCK_D) turned and multiplied by `factor` in fp32, rounded once."""
    d = tl.arange(0, BLOCK_D)
    low = d < HALF
    inside = (d < 2 * HALF)[None, :]
    column = tl.where(low, d, d - HALF)[None, :]
    other = tl.where(low, d + HALF, d - HALF)[None, :]
    source = q + row.to(tl.int64)[:, None] * row_stride
    table = row[:, None] * HALF + column
    x = tl.load(source + d[None, :], mask=inside, other=0.0).to(tl.float32)
    y = tl.load(source + other, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(cos + table, mask=inside, other=0.0) * factor
    s = tl.load(sin + table, mask=inside, other=0.0) * factor
    return (x * c + y * tl.where(low[None, :], -s, s)).to(q.dtype.element_ty)


@triton.jit
def _noise_tile(pool, place, first_key, BM: tl.constexpr, BN: tl.constexpr, POOL: tl.constexpr):
    """Deviates (BM, BN) of keys first_key ...; first_key is a multiple of 32, place (BM,) are multiples of 8."""
    at = (place + first_key) & (POOL - 1)
    return tl.load(pool + at[:, None] + tl.arange(0, BN)[None, :]).to(tl.float32)


@triton.jit
def _band(
    acc, top, total, q_tile, keys, values, key_plane, batch, kv_head,
    low, low_whole, high_whole, high, start, stop,
    pool, place, gate, slope, level,
    BM: tl.constexpr, BN: tl.constexpr, BLOCK_D: tl.constexpr, POOL: tl.constexpr,
    NOISY: tl.constexpr, MASKED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Add key tiles to the running softmax: the whole ones, or those on a boundary.

    low ... high: the band's tiles; low_whole ... high_whole: those that no query sees in part.
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
        k = keys.load([key_plane, first_key, 0]).reshape(BN, BLOCK_D)
        x = tl.dot(q_tile, k.T)
        key = first_key + tl.arange(0, BN)
        if NOISY:
            open_key = tl.load(gate + key)
            deviate = _noise_tile(pool, place, first_key, BM, BN, POOL)
            x += deviate * (level[:, None] * open_key[None, :] - slope[:, None] * (open_key * key)[None, :])
        if MASKED:
            x = tl.where((key[None, :] >= start[:, None]) & (key[None, :] < stop[:, None]), x, float("-inf"))
        new_top = tl.maximum(top, tl.max(x, 1))
        p = tl.exp2(x - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None]
        v = values.load([batch, kv_head, first_key, 0]).reshape(BN, BLOCK_D)
        acc = tl.dot(p.to(v.dtype), v, acc)
        top = new_top
    return acc, top, total


@triton.jit
def prefill_kernel(
    q, cos, sin, keys, values, out, lse, bounds, tiles, pool, gates, hash_keys, std,
    q_batch, q_head, q_token, out_batch, out_head, out_token,
    num_tiles, num_queries, gate_stride, num_heads, num_kv_heads, batch_size, past, factor, slope_factor, level_factor,
    GROUP: tl.constexpr, BANDS: tl.constexpr, NOISY: tl.constexpr, HALF: tl.constexpr, BLOCK_D: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, POOL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """See `triton.attend`. bounds: (2, BANDS, T) int32; cos, sin: (BANDS, T, HALF); tiles: (num_tiles, 2 + 2 BANDS)
    int32: first query, end, and for each band its slot in `keys` and its row in `gates`. NOISY: a bit for each band.
    """
    # All tiles and query heads of one key head run side by side, so that its keys stay in the L2 cache.
    pid = tl.program_id(0)
    plane = pid // (num_tiles * GROUP)
    rest = pid % (num_tiles * GROUP)
    batch, kv_head = plane // num_kv_heads, plane % num_kv_heads
    head = kv_head * GROUP + rest % GROUP
    tile = tiles + (rest // GROUP) * (2 + 2 * BANDS)
    first, end = tl.load(tile), tl.load(tile + 1)

    # Rows beyond the tile's end repeat its last query and are not written.
    row = first + tl.arange(0, BM)
    written = row < end
    row = tl.minimum(row, end - 1)
    q += batch.to(tl.int64) * q_batch + head.to(tl.int64) * q_head
    acc = tl.zeros([BM, BLOCK_D], tl.float32)
    top = tl.full([BM], _LOWEST, tl.float32)
    total = tl.zeros([BM], tl.float32)
    place, slope, level = row, row.to(tl.float32), row.to(tl.float32)
    if NOISY:
        hashed = tl.load(hash_keys + head).to(tl.uint32, bitcast=True)
        place = (mix(hashed ^ mix((row + past).to(tl.uint32))) & (POOL - 8)).to(tl.int32)
        deviation = tl.load(std + row)
        slope = deviation * slope_factor
        level = deviation * level_factor + slope * (row + past).to(tl.float32)

    for band in tl.static_range(BANDS):
        starts = bounds + band * num_queries
        stops = bounds + (BANDS + band) * num_queries
        low, low_end = tl.load(starts + first), tl.load(starts + end - 1)
        high_start, high = tl.load(stops + first), tl.load(stops + end - 1)
        if low < high:
            start, stop = tl.load(starts + row), tl.load(stops + row)
            slot, gate = tl.load(tile + 2 + 2 * band), tl.load(tile + 3 + 2 * band)
            q_tile = _turned_query(
                q, cos + band * num_queries * HALF, sin + band * num_queries * HALF, row, q_token, factor, HALF, BLOCK_D

            )  # fmt: skip
            key_plane = (slot * batch_size + batch) * num_kv_heads + kv_head
            first_tile, end_tile = low // BN, (high + BN - 1) // BN
            first_whole = tl.minimum((low_end + BN - 1) // BN, end_tile)
            end_whole = tl.maximum(high_start // BN, first_whole)
            for masked in tl.static_range(2):
                acc, top, total = _band(
                    acc, top, total, q_tile, keys, values, key_plane, batch, kv_head,
                    first_tile, first_whole, end_whole, end_tile, start, stop,
                    pool, place, gates + gate * gate_stride if NOISY else gates, slope, level,
                    BM, BN, BLOCK_D, POOL, (NOISY >> band) & 1, masked, STAGES,
                )  # fmt: skip

    acc = acc / tl.where(total > 0, total, 1.0)[:, None]  # a query that sees no key gives 0
    d = tl.arange(0, BLOCK_D)
    row = row.to(tl.int64)
    target = out + batch.to(tl.int64) * out_batch + head.to(tl.int64) * out_head + row[:, None] * out_token + d[None, :]
    tl.store(target, acc.to(out.dtype.element_ty), mask=written[:, None] & (d < 2 * HALF)[None, :])
    if lse is not None:
        place_of_row = (batch * num_heads + head).to(tl.int64) * num_queries + row
        tl.store(lse + place_of_row, (top + tl.log2(total)) * _LN2, mask=written)
