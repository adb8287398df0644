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
def _noise_rows(hash_keys, head, first, end, past, BM: tl.constexpr, WARPS: tl.constexpr):
    """Of a tile's queries, in the order in which `_deviates` reads, (8, WARPS, 2, BM / (16 WARPS)): their hashes, and
    their places in a block of the pool.
    """
    rows = tl.arange(0, 8)[:, None, None, None] + tl.arange(0, WARPS)[None, :, None, None] * 16
    rows += tl.arange(0, 2)[None, None, :, None] * 8
    rows += tl.arange(0, BM // (16 * WARPS))[None, None, None, :] * (16 * WARPS)
    index = tl.minimum(first + rows, end - 1) + past
    hashed = tl.load(hash_keys + head).to(tl.uint32, bitcast=True)
    return mix(hashed ^ mix((index // 8).to(tl.uint32))), (index & 7) * 32


@triton.jit
def _deviates(
    pool, rows, within, first_key, BM: tl.constexpr, BN: tl.constexpr, WARPS: tl.constexpr, POOL: tl.constexpr
):
    """Deviates of keys first_key ..., a multiple of 32, as `_in_place` takes them.

    Read in a shape whose dimensions are the lanes of a warp, the warps and the registers of a matrix product, so that
    every thread reads its own deviates, a warp reads 512 bytes in a row, and none moves between threads.
    """
    block = (first_key // 32).to(tl.uint32) + tl.arange(0, BN // 32).to(tl.uint32)
    at = (mix(rows[:, :, :, :, None] + block[None, None, None, None, :]) & (POOL - 8)).to(tl.int32)
    at += within[:, :, :, :, None]  # (8, WARPS, 2, repeats, blocks)
    at = tl.arange(0, 4)[:, None, None, None, None, None, None] * 8 + at[None, :, :, :, :, :, None]
    at += tl.arange(0, 8)[None, None, None, None, None, None, :]
    return tl.load(pool + tl.max_contiguous(tl.multiple_of(at, [1, 1, 1, 1, 1, 1, 8]), [1, 1, 1, 1, 1, 1, 8]))


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
def _add_noise(x, deviate, index, first_key, slope, level, period, pattern, BN: tl.constexpr):
    """Logits (BM, BN) with noise. A thread of a matrix product holds columns 8m + 2t + e of its t: parts of columns
    that depend on t alone are kept apart, so that the others are constants of the code.
    """
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
def _band(
    acc, top, total, q_tile, keys, values, key_plane, batch, kv_head,
    low, low_whole, high_whole, high, start, stop,
    pool, rows, within, index, slope, level, period, pattern,
    BM: tl.constexpr, BN: tl.constexpr, BLOCK_D: tl.constexpr, POOL: tl.constexpr, WARPS: tl.constexpr,
    NOISY: tl.constexpr, MASKED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Add key tiles to the running softmax: the whole ones, or those on a boundary.

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
            # In a branch, always taken, the compiler leaves the load as it is; elsewhere it would copy the pool into
            # shared memory, past the L1 cache.
            deviate = tl.zeros([4, 8, WARPS, 2, BM // (16 * WARPS), BN // 32, 8], tl.float16)
            if period > 0:
                deviate = _deviates(pool, rows, within, first_key, BM, BN, WARPS, POOL)
        k = keys.load([key_plane, first_key, 0]).reshape(BN, BLOCK_D)
        x = tl.dot(q_tile, k.T)
        if NOISY:
            x = _add_noise(x, _in_place(deviate, BM, BN, WARPS), index, first_key, slope, level, period, pattern, BN)
        if MASKED:
            key = first_key + tl.arange(0, BN)
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


@triton.jit(do_not_specialize=["num_tiles", "num_queries", "batch_size", "past"])
def prefill_kernel(
    queries, keys, values, out, lse, bounds, tiles, pool, gates, hash_keys, std,
    out_batch, out_head, out_token,
    num_tiles, num_queries, num_heads, num_kv_heads, batch_size, past, slope_factor, level_factor,
    GROUP: tl.constexpr, BANDS: tl.constexpr, NOISY: tl.constexpr, HALF: tl.constexpr, BLOCK_D: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, POOL: tl.constexpr, WARPS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """See `triton.attend`. queries: turned, (BANDS * B * H, T, D), with 1/ln 2 and the scaling; keys: turned,
    (slots * B * Hkv, N, D); bounds: (2, BANDS, T) int32; tiles: (num_tiles, 2 + 2 BANDS) int32: first query, end, and
    for each band its keys' slot and its row in `gates`, (periods, 2) int64; NOISY: a bit for each band.
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
    acc = tl.zeros([BM, BLOCK_D], tl.float32)
    top = tl.full([BM], _LOWEST, tl.float32)
    total = tl.zeros([BM], tl.float32)
    index = row + past
    rows, within, slope, level = row, row, row.to(tl.float32), row.to(tl.float32)
    if NOISY:
        rows, within = _noise_rows(hash_keys, head, first, end, past, BM, WARPS)
        deviation = tl.load(std + row)
        slope = deviation * slope_factor
        level = deviation * level_factor

    for band in tl.static_range(BANDS):
        starts = bounds + band * num_queries
        stops = bounds + (BANDS + band) * num_queries
        low, low_end = tl.load(starts + first), tl.load(starts + end - 1)
        high_start, high = tl.load(stops + first), tl.load(stops + end - 1)
        if low < high:
            start, stop = tl.load(starts + row), tl.load(stops + row)
            slot, gate = tl.load(tile + 2 + 2 * band), tl.load(tile + 3 + 2 * band)
            period, pattern = 1, tl.cast(0, tl.int64)
            if (NOISY >> band) & 1:
                period, pattern = tl.load(gates + 2 * gate).to(tl.int32), tl.load(gates + 2 * gate + 1)
            q_tile = queries.load([(band * batch_size + batch) * num_heads + head, first, 0]).reshape(BM, BLOCK_D)
            key_plane = (slot * batch_size + batch) * num_kv_heads + kv_head
            first_tile, end_tile = low // BN, (high + BN - 1) // BN
            first_whole = tl.minimum((low_end + BN - 1) // BN, end_tile)
            end_whole = tl.maximum(high_start // BN, first_whole)
            for masked in tl.static_range(2):
                acc, top, total = _band(
                    acc, top, total, q_tile, keys, values, key_plane, batch, kv_head,
                    first_tile, first_whole, end_whole, end_tile, start, stop,
                    pool, rows, within, index, slope, level, period, pattern,
                    BM, BN, BLOCK_D, POOL, WARPS, (NOISY >> band) & 1, masked, STAGES,
                )  # fmt: skip

    acc = acc / tl.where(total > 0, total, 1.0)[:, None]  # a query that sees no key gives 0
    d = tl.arange(0, BLOCK_D)
    row = row.to(tl.int64)
    target = out + batch.to(tl.int64) * out_batch + head.to(tl.int64) * out_head + row[:, None] * out_token + d[None, :]
    tl.store(target, acc.to(out.dtype.element_ty), mask=written[:, None] & (d < 2 * HALF)[None, :])
    if lse is not None:
        place_of_row = (batch * num_heads + head).to(tl.int64) * num_queries + row
        tl.store(lse + place_of_row, (top + tl.log2(total)) * _LN2, mask=written)
