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
    """Noise of a tile (warps, keys, heads), as `noise.draw`; period as `Band.noise_period`, -1 for none."""
    place = (mix(rows[None, None, :] + (key // 32).to(tl.uint32)[:, :, None]) & (POOL - 8)).to(tl.int32)
    slot = 32 * (index & 7) + 8 * (key % 8 // 2) + 2 * (key % 32 // 8) + key % 2
    deviate = tl.load(pool + place + slot[:, :, None]).to(tl.float32)
    open_key = (period == 0) | ((period > 0) & (key % tl.maximum(period, 1) != 0))
    return tl.where(open_key[:, :, None], deviate * (level + slope * (index - key).to(tl.float32))[:, :, None], 0.0)


@triton.jit
def _walk(
    q_low, q_high, c_query, s_query, keys, values, batch, kv_head, left, low, high, start, stop, step, cos, sin, factor,
    pool, rows, index, slope, level, period,
    BLOCK_GROUP: tl.constexpr, NOISY: tl.constexpr, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr,
    BLOCK_D: tl.constexpr, BN: tl.constexpr, WARPS: tl.constexpr, RELATIVE: tl.constexpr, POOL: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """The softmax over tiles low ... high - 1 of a band.

    q_low, q_high: halves of the queries, (1, D/2, heads); c_query, s_query: their table, (1, D/2, 1).

    Each warp keeps a softmax over keys of its own, so that warps wait for each other at the end only.
    Returns the weighted mean of values (D, heads) and the base-2 logarithm of the sum of weights (heads,).
    """
    dtype: tl.constexpr = values.dtype
    column = tl.arange(0, BLOCK_HALF)
    inside = column < HALF
    offset = (tl.arange(0, WARPS) * (BN // WARPS))[:, None] + tl.arange(0, BN // WARPS)[None, :]
    near = offset[:, :, None] * HALF + column[None, None, :]
    if RELATIVE:
        used = (offset < step)[:, :, None] & inside[None, None, :]
        # All loads come before the first use of one.
        c_key, s_key = tl.load(cos + near, mask=used, other=0.0), tl.load(sin + near, mask=used, other=0.0)
        c_low, s_low = _row(cos, low * step, HALF, BLOCK_HALF), _row(sin, low * step, HALF, BLOCK_HALF)
        c_step, s_step = _row(cos, step, HALF, BLOCK_HALF), _row(sin, step, HALF, BLOCK_HALF)
    q_low, q_high = q_low * c_query - q_high * s_query, q_high * c_query + q_low * s_query
    if RELATIVE:
        # Adding a product of zeros leaves the tables in the layout of the tensor cores, where turned keys are needed:
        # the compiler would turn keys in the layout of the tables' loads, and move them through shared memory.
        zero_m = tl.zeros([WARPS, BN // WARPS, 16], dtype)
        zero_n = tl.zeros([WARPS, 16, BLOCK_HALF], dtype)
        c_key, s_key = tl.dot(zero_m, zero_n, c_key), tl.dot(zero_m, zero_n, s_key)
        q_low, q_high = q_low * c_low + q_high * s_low, q_high * c_low - q_low * s_low
    acc = tl.zeros([WARPS, BLOCK_D, BLOCK_GROUP], tl.float32)
    top = tl.full([WARPS, BLOCK_GROUP], -1.0e30, tl.float32)
    total = tl.zeros([WARPS, BN // WARPS, BLOCK_GROUP], tl.float32)
    for tile in tl.range(low, high, num_stages=STAGES):
        first_key = tile * step
        a = tl.broadcast_to(q_low.to(dtype), [WARPS, BLOCK_HALF, BLOCK_GROUP])
        b = tl.broadcast_to(q_high.to(dtype), [WARPS, BLOCK_HALF, BLOCK_GROUP])
        if RELATIVE:  # for the next tile
            q_low, q_high = q_low * c_step + q_high * s_step, q_high * c_step - q_low * s_step
        else:
            used = (first_key + offset < stop)[:, :, None] & inside[None, None, :]
            c_key = tl.load(cos + first_key * HALF + near, mask=used, other=0.0)
            s_key = tl.load(sin + first_key * HALF + near, mask=used, other=0.0)
        k_low = keys.load([batch, kv_head, left + first_key, 0]).reshape(WARPS, BN // WARPS, BLOCK_HALF)
        k_high = keys.load([batch, kv_head, left + first_key, HALF]).reshape(WARPS, BN // WARPS, BLOCK_HALF)
        value = values.load([batch, kv_head, left + first_key, 0]).reshape(WARPS, BN // WARPS, BLOCK_D)
        x, y = k_low.to(tl.float32), k_high.to(tl.float32)
        logits = tl.dot((x * c_key - y * s_key).to(dtype), a)
        logits = tl.dot((y * c_key + x * s_key).to(dtype), b, logits) * factor
        key = first_key + offset
        if NOISY:
            logits += _noise(pool, rows, index, key, slope, level, period, POOL)
        seen = (offset < step) & (key >= start) & (key < stop)
        logits = tl.where(seen[:, :, None], logits, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, 1))
        p = tl.exp2(logits - new_top[:, None, :])
        shrink = tl.exp2(top - new_top)[:, None, :]
        total = total * shrink + p
        acc = tl.dot(tl.permute(value, 0, 2, 1), p.to(dtype), acc * shrink)
        top = new_top
    whole = tl.max(top, 0)
    weight = tl.exp2(top - whole[None, :])
    total = tl.sum(tl.sum(total, 1) * weight, 0)
    weight = weight / tl.where(total > 0, total, 1.0)[None, :]
    # Splitting in two moves the warps' parts once; a sum over the axis of warps would move them twice.
    tl.static_assert(WARPS == 4)
    parts = tl.permute(acc * weight[:, None, :], 1, 2, 0).reshape(BLOCK_D, BLOCK_GROUP, 2, 2)
    one, other = tl.split(parts)
    one, other = tl.split(one + other)
    return one + other, whole + tl.log2(total)


@triton.jit
def _row(table, row, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr):
    """A row of a table, (1, D/2, 1)."""
    column = tl.arange(0, BLOCK_HALF)
    return tl.load(table + row * HALF + column, mask=column < HALF, other=0.0)[None, :, None]


@triton.jit(do_not_specialize=["splits"])
def decode_kernel(
    q, keys, values, out, lse, work, numbers, parts, log_totals, arrivals, pool, hash_keys,
    q_batch, q_head, out_batch, out_head, splits, num_kv_heads, factor, slope_factor, level_factor,
    GROUP: tl.constexpr, BLOCK_GROUP: tl.constexpr, BANDS: tl.constexpr, NOISY: tl.constexpr,
    HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_D: tl.constexpr, BN: tl.constexpr, WARPS: tl.constexpr,
    RELATIVE: tl.constexpr, POOL: tl.constexpr, BLOCK_MEMBERS: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
    STAGES: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """See `triton.attend_one`. work: (B, splits, 11) int64; numbers: (B, 1 + 2 BANDS HALF) fp32, the noise's
    deviation and the query's tables.
    """
    if DEPENDENT:  # launched before the kernel ahead of it in the stream has ended
        tl.extra.cuda.gdc_wait()
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
    column = tl.arange(0, BLOCK_HALF)[None, :, None]
    source = q + batch.to(tl.int64) * q_batch + head[None, None, :] * q_head + column
    q_low = tl.load(source, mask=column < HALF, other=0.0).to(tl.float32)
    q_high = tl.load(source + HALF, mask=column < HALF, other=0.0).to(tl.float32)
    numbers += batch * (1 + 2 * BANDS * HALF)
    c_query = _row(numbers + 1, 2 * band, HALF, BLOCK_HALF)
    s_query = _row(numbers + 1, 2 * band + 1, HALF, BLOCK_HALF)
    rows, slope, level = head, 0.0, 0.0
    if NOISY:
        hashed = tl.load(hash_keys + head).to(tl.uint32, bitcast=True)
        rows = mix(hashed ^ mix((index // 8).to(tl.uint32)))
        slope, level = tl.load(numbers) * slope_factor, tl.load(numbers) * level_factor

    mean, log_total = _walk(
        q_low, q_high, c_query, s_query, keys, values, batch, kv_head, left, low, high, start, stop, step, cos, sin,
        factor, pool, rows, index, slope, level, period,
        BLOCK_GROUP, NOISY, HALF, BLOCK_HALF, BLOCK_D, BN, WARPS, RELATIVE, POOL, STAGES,
    )  # fmt: skip

    d = tl.arange(0, BLOCK_D)
    real = (member < GROUP)[None, :] & (d < 2 * HALF)[:, None]
    part = plane * splits + split
    tl.store(parts + (part * BLOCK_D + d[:, None]) * BLOCK_MEMBERS + member[None, :], mean, mask=real)
    tl.store(log_totals + part * BLOCK_MEMBERS + member, log_total, mask=member < GROUP)
    tl.debug_barrier()
    if tl.atomic_add(arrivals + plane, 1, sem="acq_rel") == splits - 1:
        tl.store(arrivals + plane, 0)  # for the next launch
        _merge(
            parts + plane * splits * BLOCK_D * BLOCK_MEMBERS, log_totals + plane * splits * BLOCK_MEMBERS,
            out + batch.to(tl.int64) * out_batch + kv_head * GROUP * out_head, out_head,
            lse if lse is None else lse + plane * GROUP, splits,
            GROUP, BLOCK_MEMBERS, HALF, BLOCK_D, BLOCK_SPLITS,
        )  # fmt: skip


@triton.jit
def _merge(
    parts, log_totals, out, out_head, lse, splits,
    GROUP: tl.constexpr, BLOCK_MEMBERS: tl.constexpr, HALF: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):  # fmt: skip
    """The softmax over all parts of a key head. A thread sums its own components: none waits for another."""
    member = tl.arange(0, BLOCK_MEMBERS)
    d = tl.arange(0, BLOCK_D)
    real = (member < GROUP)[None, :] & (d < 2 * HALF)[:, None]
    number = tl.arange(0, BLOCK_SPLITS)
    there = (number < splits)[:, None] & (member < GROUP)[None, :]
    lines = log_totals + number[:, None] * BLOCK_MEMBERS + member[None, :]
    each = tl.load(lines, mask=there, other=float("-inf"), cache_modifier=".cg")
    top = tl.maximum(tl.max(each, 0), -1.0e30)
    total = tl.sum(tl.exp2(each - top[None, :]), 0)
    acc = tl.zeros([BLOCK_D, BLOCK_MEMBERS], tl.float32)
    for begin in tl.range(0, splits, 16):
        for i in tl.static_range(16):  # 16 loads at a time
            bound = tl.minimum(splits - begin - i, 1) * GROUP  # members of this part
            line = log_totals + (begin + i) * BLOCK_MEMBERS + member
            one = tl.load(line, mask=member < bound, other=float("-inf"), cache_modifier=".cg")
            mean = tl.load(
                parts + ((begin + i) * BLOCK_D + d[:, None]) * BLOCK_MEMBERS + member[None, :],
                mask=(member < bound)[None, :] & real, other=0.0, cache_modifier=".cg",
            )  # fmt: skip
            acc += tl.exp2(one - top)[None, :] * mean
    acc = acc / tl.where(total > 0, total, 1.0)[None, :]
    tl.store(out + member.to(tl.int64)[None, :] * out_head + d[:, None], acc.to(out.dtype.element_ty), mask=real)
    if lse is not None:
        tl.store(lse + member, (top + tl.log2(total)) * 0.6931471805599453, mask=member < GROUP)
