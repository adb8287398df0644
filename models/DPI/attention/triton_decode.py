"""Attention over bands for one query a row: one Triton kernel, the keys split among programs.

The cache stays un-rotated and is read once. In a tile that begins at a multiple of the band's stretch, keys sit at
p(first key) plus the same few positions as in every other tile; so the program keeps the table of those in registers
and turns the query back by p(first key) instead. Bands with other positions read the table of all keys.
The program that finishes last for a key head merges the parts.
"""

import triton
import triton.language as tl

from models.DPI.attention.triton_prefill import mix

# Numbers are written out below, not named: Triton compares named ones with the module's at every launch.
# A line of `work`, one a program: 0 the row's first key, 1 its query's index; 2, 3 tiles low ... high - 1 of a band;
# 4, 5 the band's keys start ... stop - 1, 6 the keys of a tile, 7, 8 addresses of its cosines and sines, 9 its noise
# period and 10 its number.


@triton.jit
def _noise(pool, rows, index, key, slope, level, period, POOL: tl.constexpr):
    """Noise of a tile (heads, keys), as `noise.draw`; period as `Band.noise_period`, -1 for none."""
    place = (mix(rows[:, None] + (key // 32).to(tl.uint32)[None, :]) & (POOL - 8)).to(tl.int32)
    slot = 32 * (index & 7) + 8 * (key % 8 // 2) + 2 * (key % 32 // 8) + key % 2
    deviate = tl.load(pool + place + slot[None, :]).to(tl.float32)
    open_key = (period == 0) | ((period > 0) & (key % tl.maximum(period, 1) != 0))
    return tl.where(open_key[None, :], deviate * (level + slope * (index - key).to(tl.float32))[None, :], 0.0)


@triton.jit
def _walk(
    q_low, q_high, keys, values, batch, kv_head, left, low, high, start, stop, step, cos, sin,
    pool, rows, index, slope, level, period,
    BLOCK_GROUP: tl.constexpr, NOISY: tl.constexpr, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr,
    BLOCK_D: tl.constexpr, BN: tl.constexpr, RELATIVE: tl.constexpr, POOL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The running softmax over tiles low ... high - 1 of a band, queries turned by the band's table."""
    column = tl.arange(0, BLOCK_HALF)
    inside = column < HALF
    offset = tl.arange(0, BN)
    near = offset[:, None] * HALF + column[None, :]
    if RELATIVE:
        used = (offset < step)[:, None] & inside[None, :]
        c_key = tl.load(cos + near, mask=used, other=0.0)
        s_key = tl.load(sin + near, mask=used, other=0.0)
    acc = tl.zeros([BLOCK_GROUP, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_GROUP], -1.0e30, tl.float32)
    total = tl.zeros([BLOCK_GROUP], tl.float32)
    for tile in tl.range(low, high, num_stages=STAGES):
        first_key = tile * step
        k_low = keys.load([batch, kv_head, left + first_key, 0]).reshape(BN, BLOCK_HALF)
        k_high = keys.load([batch, kv_head, left + first_key, HALF]).reshape(BN, BLOCK_HALF)
        value = values.load([batch, kv_head, left + first_key, 0]).reshape(BN, BLOCK_D)
        a, b = q_low, q_high
        if RELATIVE:
            base = first_key * HALF + column
            c = tl.load(cos + base, mask=inside, other=0.0)[None, :]
            s = tl.load(sin + base, mask=inside, other=0.0)[None, :]
            a, b = q_low * c + q_high * s, q_high * c - q_low * s
        else:
            used = (first_key + offset < stop)[:, None] & inside[None, :]
            c_key = tl.load(cos + first_key * HALF + near, mask=used, other=0.0)
            s_key = tl.load(sin + first_key * HALF + near, mask=used, other=0.0)
        x, y = k_low.to(tl.float32), k_high.to(tl.float32)
        k_low, k_high = (x * c_key - y * s_key).to(value.dtype), (y * c_key + x * s_key).to(value.dtype)
        logits = tl.dot(a.to(value.dtype), k_low.T)
        logits = tl.dot(b.to(value.dtype), k_high.T, logits)
        key = first_key + offset
        if NOISY:
            logits += _noise(pool, rows, index, key, slope, level, period, POOL)
        seen = (offset < step) & (key >= start) & (key < stop)
        logits = tl.where(seen[None, :], logits, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, 1))
        p = tl.exp2(logits - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        acc = tl.dot(p.to(value.dtype), value, acc * shrink[:, None])
        top = new_top
    return acc, top, total


@triton.jit(do_not_specialize=["splits"])
def decode_kernel(
    q, keys, values, out, lse, work, numbers, parts, tops, arrivals, pool, hash_keys,
    q_batch, q_head, out_batch, out_head, splits, num_kv_heads, factor, slope_factor, level_factor,
    GROUP: tl.constexpr, BLOCK_GROUP: tl.constexpr, BANDS: tl.constexpr, NOISY: tl.constexpr,
    HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_D: tl.constexpr, BN: tl.constexpr, RELATIVE: tl.constexpr,
    POOL: tl.constexpr, BLOCK_MEMBERS: tl.constexpr, BLOCK_SPLITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """See `triton.attend_one`. work: (B, splits, 11) int64; numbers: (B, 1 + 2 BANDS HALF) fp32, the noise's
    deviation and the query's tables.
    """
    split, plane = tl.program_id(0), tl.program_id(1)
    batch, kv_head = plane // num_kv_heads, plane % num_kv_heads
    work += (batch * splits + split) * 11
    left, index = tl.load(work).to(tl.int32), tl.load(work + 1).to(tl.int32)
    low, high = tl.load(work + 2).to(tl.int32), tl.load(work + 3).to(tl.int32)
    start, stop = tl.load(work + 4).to(tl.int32), tl.load(work + 5).to(tl.int32)
    step, period = tl.load(work + 6).to(tl.int32), tl.load(work + 9).to(tl.int32)
    cos = tl.multiple_of(tl.load(work + 7).to(tl.pointer_type(tl.float32)), 16)
    sin = tl.multiple_of(tl.load(work + 8).to(tl.pointer_type(tl.float32)), 16)
    band = tl.load(work + 10).to(tl.int32)

    member = tl.arange(0, BLOCK_GROUP)
    head = kv_head * GROUP + tl.minimum(member, GROUP - 1)
    column = tl.arange(0, BLOCK_HALF)
    inside = column < HALF
    source = q + batch.to(tl.int64) * q_batch + head[:, None] * q_head + column[None, :]
    q_low = tl.load(source, mask=inside[None, :], other=0.0).to(tl.float32)
    q_high = tl.load(source + HALF, mask=inside[None, :], other=0.0).to(tl.float32)
    numbers += batch * (1 + 2 * BANDS * HALF)
    table = numbers + 1 + 2 * band * HALF + column
    c = (tl.load(table, mask=inside, other=0.0) * factor)[None, :]
    s = (tl.load(table + HALF, mask=inside, other=0.0) * factor)[None, :]
    turned_low, turned_high = q_low * c - q_high * s, q_high * c + q_low * s
    rows, slope, level = head, 0.0, 0.0
    if NOISY:
        hashed = tl.load(hash_keys + head).to(tl.uint32, bitcast=True)
        rows = mix(hashed ^ mix((index // 8).to(tl.uint32)))
        slope, level = tl.load(numbers) * slope_factor, tl.load(numbers) * level_factor

    acc, top, total = _walk(
        turned_low, turned_high, keys, values, batch, kv_head, left, low, high, start, stop, step, cos, sin,
        pool, rows, index, slope, level, period,
        BLOCK_GROUP, NOISY, HALF, BLOCK_HALF, BLOCK_D, BN, RELATIVE, POOL, STAGES,
    )  # fmt: skip

    d = tl.arange(0, BLOCK_D)
    real = (member < GROUP)[:, None] & (d < 2 * HALF)[None, :]
    part = (plane * splits + split) * BLOCK_GROUP + member
    tl.store(parts + part.to(tl.int64)[:, None] * BLOCK_D + d[None, :], acc, mask=real)
    tl.store(tops + 2 * part, top)
    tl.store(tops + 2 * part + 1, total)
    tl.debug_barrier()
    if tl.atomic_add(arrivals + plane, 1, sem="acq_rel") == splits - 1:
        tl.store(arrivals + plane, 0)  # for the next launch
        _merge(
            parts, tops, out + batch.to(tl.int64) * out_batch + kv_head * GROUP * out_head, out_head,
            lse if lse is None else lse + plane * GROUP, plane, splits,
            GROUP, BLOCK_MEMBERS, BLOCK_GROUP, HALF, BLOCK_D, BLOCK_SPLITS,
        )  # fmt: skip


@triton.jit
def _merge(
    parts, tops, out, out_head, lse, plane, splits,
    GROUP: tl.constexpr, BLOCK_MEMBERS: tl.constexpr, BLOCK_GROUP: tl.constexpr, HALF: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
):  # fmt: skip
    """The softmax over all parts of a key head, BLOCK_SPLITS of them at a time."""
    member = tl.arange(0, BLOCK_MEMBERS)
    d = tl.arange(0, BLOCK_D)
    real = (member < GROUP)[:, None] & (d < 2 * HALF)[None, :]
    top = tl.full([BLOCK_MEMBERS], -1.0e30, tl.float32)
    total = tl.zeros([BLOCK_MEMBERS], tl.float32)
    acc = tl.zeros([BLOCK_MEMBERS, BLOCK_D], tl.float32)
    for begin in range(0, splits, BLOCK_SPLITS):
        number = begin + tl.arange(0, BLOCK_SPLITS)
        row = (plane * splits + number)[:, None] * BLOCK_GROUP + member[None, :]
        there = (number < splits)[:, None] & (member < GROUP)[None, :]
        part_tops = tl.load(tops + 2 * row, mask=there, other=-1.0e30, cache_modifier=".cg")
        part_totals = tl.load(tops + 2 * row + 1, mask=there, other=0.0, cache_modifier=".cg")
        part = tl.load(
            parts + row.to(tl.int64)[:, :, None] * BLOCK_D + d[None, None, :],
            mask=(number < splits)[:, None, None] & real[None, :, :], other=0.0, cache_modifier=".cg",
        )  # fmt: skip
        new_top = tl.maximum(top, tl.max(part_tops, 0))
        weight, shrink = tl.exp2(part_tops - new_top[None, :]), tl.exp2(top - new_top)
        total = total * shrink + tl.sum(part_totals * weight, 0)
        acc = acc * shrink[:, None] + tl.sum(weight[:, :, None] * part, 0)
        top = new_top
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out + member.to(tl.int64)[:, None] * out_head + d[None, :], acc.to(out.dtype.element_ty), mask=real)
    if lse is not None:
        tl.store(lse + member, (top + tl.log2(total)) * 0.6931471805599453, mask=member < GROUP)
