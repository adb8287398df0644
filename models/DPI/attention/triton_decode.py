"""Attention over bands for one query a row: one Triton kernel, the keys split among programs.

The cache stays un-rotated and is read once. In a tile that begins at a multiple of the band's stretch, keys sit at
p(first key) plus the same few positions as in every other tile; so the program keeps the table of those in registers
and turns the query back by p(first key) instead. Bands with other positions read the table of all keys.
The program that finishes last for a key head merges the parts.
"""

import triton
import triton.language as tl

from models.DPI.attention.triton_prefill import _LN2, _LOWEST, mix

# Columns of `integers`: a row's first key, its query's index and how many tiles it has; then of each band its keys, the
# keys of a tile, its tables' addresses, its noise period, its first tile, and the tiles before it and up to its end.
LEFT, INDEX, TILES, HEADER = (tl.constexpr(i) for i in range(4))
START, STOP, STEP, COS, SIN, PERIOD, FIRST, BEFORE, UP_TO, COLUMNS = (tl.constexpr(i) for i in range(10))
# Parts that the merge reads at a time.
_MERGED = tl.constexpr(16)


@triton.jit
def _noise(pool, rows, index, key, slope, level, period, POOL: tl.constexpr):
    """Noise of a tile (heads, keys), as `noise.draw`; period as `Band.noise_period`, -1 for none."""
    place = (mix(rows[:, None] + (key // 32).to(tl.uint32)[None, :]) & (POOL - 8)).to(tl.int32)
    slot = 32 * (index & 7) + 8 * (key % 8 // 2) + 2 * (key % 32 // 8) + key % 2
    deviate = tl.load(pool + place + slot[None, :]).to(tl.float32)
    open_key = (period == 0) | ((period > 0) & (key % tl.maximum(period, 1) != 0))
    return tl.where(open_key[None, :], deviate * (level + slope * (index - key).to(tl.float32))[None, :], 0.0)


@triton.jit
def decode_kernel(
    q, k, v, out, lse, integers, numbers, parts, tops, arrivals, pool, hash_keys,
    q_batch, q_head, k_batch, k_head, k_token, v_batch, v_head, v_token, out_batch, out_head,
    splits, num_kv_heads, factor, slope_factor, level_factor,
    GROUP: tl.constexpr, BLOCK_GROUP: tl.constexpr, BANDS: tl.constexpr, NOISY: tl.constexpr,
    HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_D: tl.constexpr, BN: tl.constexpr, RELATIVE: tl.constexpr,
    POOL: tl.constexpr, BLOCK_MEMBERS: tl.constexpr, BLOCK_SPLITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """See `triton.attend_one`. integers: (B, HEADER + BANDS * COLUMNS) int64; numbers: (B, 1 + 2 BANDS HALF) fp32, the noise's deviation and the query's tables.
    """
    split, plane = tl.program_id(0), tl.program_id(1)
    batch, kv_head = (plane // num_kv_heads).to(tl.int64), plane % num_kv_heads
    integers += batch * (HEADER + BANDS * COLUMNS)
    numbers += batch * (1 + 2 * BANDS * HALF)
    left, index, tiles = tl.load(integers + LEFT), tl.load(integers + INDEX), tl.load(integers + TILES).to(tl.int32)
    member = tl.arange(0, BLOCK_GROUP)
    head = kv_head * GROUP + tl.minimum(member, GROUP - 1)
    column = tl.arange(0, BLOCK_HALF)
    inside = column < HALF
    d = tl.arange(0, BLOCK_D)
    offset = tl.arange(0, BN)
    source = q + batch * q_batch + head[:, None] * q_head + column[None, :]
    q_low = tl.load(source, mask=inside[None, :], other=0.0).to(tl.float32)
    q_high = tl.load(source + HALF, mask=inside[None, :], other=0.0).to(tl.float32)
    k += batch * k_batch + kv_head.to(tl.int64) * k_head + left * k_token
    v += batch * v_batch + kv_head.to(tl.int64) * v_head + left * v_token

    acc = tl.zeros([BLOCK_GROUP, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_GROUP], _LOWEST, tl.float32)
    total = tl.zeros([BLOCK_GROUP], tl.float32)
    if NOISY:
        hashed = tl.load(hash_keys + head).to(tl.uint32, bitcast=True)
        rows = mix(hashed ^ mix((index // 8).to(tl.uint32)))
        deviation = tl.load(numbers)
        slope = deviation * slope_factor
        level = deviation * level_factor

    share = (tiles + splits - 1) // splits
    begin = split * share  # this program's tiles, counted through all bands
    finish = tl.minimum(begin + share, tiles)
    for band in range(BANDS):
        of_band = integers + HEADER + band * COLUMNS
        before, up_to = tl.load(of_band + BEFORE).to(tl.int32), tl.load(of_band + UP_TO).to(tl.int32)
        first_tile = tl.load(of_band + FIRST).to(tl.int32)
        low = first_tile + tl.maximum(begin - before, 0)
        high = first_tile + tl.minimum(finish, up_to) - before
        if low < high:
            start, stop = tl.load(of_band + START).to(tl.int32), tl.load(of_band + STOP).to(tl.int32)
            step, period = tl.load(of_band + STEP).to(tl.int32), tl.load(of_band + PERIOD).to(tl.int32)
            cos = tl.multiple_of(tl.load(of_band + COS).to(tl.pointer_type(tl.float32)), 16)
            sin = tl.multiple_of(tl.load(of_band + SIN).to(tl.pointer_type(tl.float32)), 16)
            table = numbers + 1 + 2 * band * HALF + column
            c = (tl.load(table, mask=inside, other=0.0) * factor)[None, :]
            s = (tl.load(table + HALF, mask=inside, other=0.0) * factor)[None, :]
            turned_low, turned_high = q_low * c - q_high * s, q_high * c + q_low * s
            near = offset[:, None] * HALF + column[None, :]
            used = (offset < step)[:, None] & inside[None, :]
            if RELATIVE:
                c_key = tl.load(cos + near, mask=used, other=0.0)
                s_key = tl.load(sin + near, mask=used, other=0.0)
            for tile in tl.range(low, high, num_stages=STAGES):
                first_key = tile * step
                key = first_key + offset
                seen = (offset < step) & (key >= start) & (key < stop)
                loaded = seen[:, None] & inside[None, :]
                at = k + key.to(tl.int64)[:, None] * k_token + column[None, :]
                x = tl.load(at, mask=loaded, other=0.0).to(tl.float32)
                y = tl.load(at + HALF, mask=loaded, other=0.0).to(tl.float32)
                value = tl.load(
                    v + key.to(tl.int64)[:, None] * v_token + d[None, :],
                    mask=seen[:, None] & (d < 2 * HALF)[None, :], other=0.0,
                )  # fmt: skip
                a, b = turned_low, turned_high
                if RELATIVE:
                    base = first_key * HALF + column
                    c = tl.load(cos + base, mask=inside, other=0.0)[None, :]
                    s = tl.load(sin + base, mask=inside, other=0.0)[None, :]
                    a, b = turned_low * c + turned_high * s, turned_high * c - turned_low * s
                else:
                    c_key = tl.load(cos + first_key * HALF + near, mask=loaded, other=0.0)
                    s_key = tl.load(sin + first_key * HALF + near, mask=loaded, other=0.0)
                k_low, k_high = (x * c_key - y * s_key).to(value.dtype), (y * c_key + x * s_key).to(value.dtype)
                logits = tl.dot(a.to(value.dtype), k_low.T)
                logits = tl.dot(b.to(value.dtype), k_high.T, logits)
                if NOISY:
                    logits += _noise(pool, rows, index.to(tl.int32), key, slope, level, period, POOL)
                logits = tl.where(seen[None, :], logits, float("-inf"))
                new_top = tl.maximum(top, tl.max(logits, 1))
                p = tl.exp2(logits - new_top[:, None])
                shrink = tl.exp2(top - new_top)
                total = total * shrink + tl.sum(p, 1)
                acc = tl.dot(p.to(value.dtype), value, acc * shrink[:, None])
                top = new_top

    real = (member < GROUP)[:, None] & (d < 2 * HALF)[None, :]
    part = (plane * splits + split) * BLOCK_GROUP + member
    tl.store(parts + part.to(tl.int64)[:, None] * BLOCK_D + d[None, :], acc, mask=real)
    tl.store(tops + 2 * part, top)
    tl.store(tops + 2 * part + 1, total)
    tl.debug_barrier()
    if tl.atomic_add(arrivals + plane, 1, sem="acq_rel") == splits - 1:
        tl.store(arrivals + plane, 0)  # for the next launch
        _merge(
            parts, tops, out + batch * out_batch + kv_head * GROUP * out_head, out_head,
            lse if lse is None else lse + plane * GROUP, plane, splits,
            GROUP, BLOCK_MEMBERS, BLOCK_GROUP, HALF, BLOCK_D, BLOCK_SPLITS,
        )  # fmt: skip


@triton.jit
def _merge(
    parts, tops, out, out_head, lse, plane, splits,
    GROUP: tl.constexpr, BLOCK_MEMBERS: tl.constexpr, BLOCK_GROUP: tl.constexpr, HALF: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
):  # fmt: skip
    """The softmax over all parts of a key head: outputs weighted by their sums of exponentials."""
    member = tl.arange(0, BLOCK_MEMBERS)
    d = tl.arange(0, BLOCK_D)
    real = (member < GROUP)[:, None] & (d < 2 * HALF)[None, :]
    number = tl.arange(0, BLOCK_SPLITS)
    row = (plane * splits + number)[:, None] * BLOCK_GROUP + member[None, :]
    there = (number < splits)[:, None] & (member < GROUP)[None, :]
    part_tops = tl.load(tops + 2 * row, mask=there, other=_LOWEST, cache_modifier=".cg")
    part_totals = tl.load(tops + 2 * row + 1, mask=there, other=0.0, cache_modifier=".cg")
    top = tl.max(part_tops, 0)
    total = tl.sum(part_totals * tl.exp2(part_tops - top[None, :]), 0)
    acc = tl.zeros([_MERGED, BLOCK_MEMBERS, BLOCK_D], tl.float32)
    for begin in range(0, splits, _MERGED):
        chosen = begin + tl.arange(0, _MERGED)
        at = (plane * splits + chosen)[:, None] * BLOCK_GROUP + member[None, :]
        within = (chosen < splits)[:, None] & (member < GROUP)[None, :]
        weight = tl.exp2(tl.load(tops + 2 * at, mask=within, other=_LOWEST, cache_modifier=".cg") - top[None, :])
        part = tl.load(
            parts + at.to(tl.int64)[:, :, None] * BLOCK_D + d[None, None, :],
            mask=(chosen < splits)[:, None, None] & real[None, :, :], other=0.0, cache_modifier=".cg",
        )  # fmt: skip
        acc += weight[:, :, None] * part
    acc = tl.sum(acc, 0) / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out + member.to(tl.int64)[:, None] * out_head + d[None, :], acc.to(out.dtype.element_ty), mask=real)
    if lse is not None:
        tl.store(lse + member, (top + tl.log2(total)) * _LN2, mask=member < GROUP)
