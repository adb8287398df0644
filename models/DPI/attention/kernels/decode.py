"""Attention over bands for one query of each row: one Triton kernel, the keys split among programs.

The cache stays un-rotated and is read once. In a tile that begins at a multiple of the band's cycle, keys sit at
p(first key) plus the same few positions as in every other tile; so the program keeps the table of those in registers
and rotates the query back by p(first key) instead. Bands with other positions read the table of all keys.
The program that finishes last for a key head merges the parts.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.DPI.attention import cards
from models.DPI.attention.bands import Plan
from models.DPI.attention.kernels.decode_arithmetic import (
    accumulate,
    load_row,
    merge,
    merge_warps,
    rotate,
    rotate_back,
    score,
)
from models.DPI.attention.kernels.launching import on, readable
from models.DPI.attention.kernels.noise import mix, noise_factors, noise_of_query, noise_tensors
from models.DPI.attention.kernels.pieces import DECODE_KEYS, load_piece, prepare_step
from models.DPI.attention.kernels.rows import load_columns_of_warps, load_rows_of_warps, rows_of
from models.DPI.attention.kernels.softmax import capped, softcap_factors
from models.DPI.attention.prepared import StepShape


def attend_one(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: Plan,
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    layer: int = 0,
    lse: Tensor | None = None,
) -> Tensor:
    """See `triton.attend_one`."""
    shape = StepShape.of(q.shape[0], q.shape[1], k)
    if shape not in plan.prepared:
        plan.prepared[shape] = prepare_step(plan, shape)
    prepared = plan.prepared[shape]
    options = prepared.options
    q, k, v = readable(q), readable(k), readable(v)
    noise = plan.noise if options["NOISY"] else None
    pool, hash_keys = noise_tensors(noise, layer, shape.heads, q.device)
    slope_factor, level_factor = noise_factors(noise)
    factor, cap = softcap_factors(scaling, softcap)
    splits = prepared.pieces.shape[1]
    by_descriptor = cards.card_of(q.device).has_copy_engine
    halves_by_descriptor = by_descriptor and options["HALF"] % 8 == 0
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    with on(q.device):
        decode_kernel[shape.batch * shape.kv_heads, splits](
            q,
            rows_of(k, DECODE_KEYS, options["BLOCK_HALF"], halves_by_descriptor),
            rows_of(k, DECODE_KEYS, options["BLOCK_REST"], halves_by_descriptor) if options["REST"] else None,
            rows_of(v, DECODE_KEYS, options["BLOCK_D"], by_descriptor),
            out,
            lse,
            sinks,
            prepared.pieces,
            prepared.numbers,
            prepared.parts,
            prepared.log_totals,
            prepared.arrivals,
            pool,
            hash_keys,
            q.stride(0),
            q.stride(1),
            out.stride(0),
            out.stride(1),
            splits,
            shape.kv_heads,
            factor,
            cap,
            slope_factor,
            level_factor,
            **options,
        )
    return out


@triton.jit
def _load_tile(
    keys,
    values,
    batch,
    kv_head,
    key,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BN: tl.constexpr,
    WARPS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Of a tile that begins at `key` of the cache halves of the keys, (WARPS, BN / WARPS, D/2), and the values,
    (WARPS, D, BN / WARPS).
    """
    place = (batch, kv_head)
    k_low = load_rows_of_warps(keys, place, key, 0, BN, BLOCK_HALF, HEAD_DIM, WARPS)
    k_high = load_rows_of_warps(keys, place, key, HALF, BN, BLOCK_HALF, HEAD_DIM, WARPS)
    return k_low, k_high, load_columns_of_warps(values, place, key, 0, BN, BLOCK_D, HEAD_DIM, WARPS)


@triton.jit
def _walk(
    piece,
    q_low,
    q_high,
    q_rest,
    c_query,
    s_query,
    keys,
    key_rests,
    values,
    batch,
    kv_head,
    factor,
    cap,
    pool,
    rows,
    slope,
    level,
    BLOCK_GROUP: tl.constexpr,
    NOISY: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BN: tl.constexpr,
    WARPS: tl.constexpr,
    RELATIVE: tl.constexpr,
    POOL: tl.constexpr,
    STAGES: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The softmax over the tiles of a piece.

    q_low, q_high: halves of the queries' components that rotate, (1, rotary_dim/2, heads); c_query, s_query: their
    table, (1, rotary_dim/2, 1). q_rest: the others, (1, D - rotary_dim, heads), read if REST of them are there.

    Each warp keeps a softmax over keys of its own, so that warps wait for each other at the end only.
    Returns the weighted mean of values (D, heads) and the base-2 logarithm of the sum of weights (heads,).
    """
    column = tl.arange(0, BLOCK_HALF)
    inside = column < HALF
    offset = (tl.arange(0, WARPS) * (BN // WARPS))[:, None] + tl.arange(0, BN // WARPS)[None, :]
    near = offset[:, :, None] * HALF + column[None, None, :]
    step = piece.step
    if RELATIVE:
        used = (offset < step)[:, :, None] & inside[None, None, :]
        # All loads come before the first use of one.
        c_key, s_key = tl.load(piece.cos + near, mask=used, other=0.0), tl.load(piece.sin + near, mask=used, other=0.0)
        first_key = piece.low * step
        c_low, s_low = (
            load_row(piece.cos, first_key, HALF, BLOCK_HALF),
            load_row(piece.sin, first_key, HALF, BLOCK_HALF),
        )
        c_step, s_step = load_row(piece.cos, step, HALF, BLOCK_HALF), load_row(piece.sin, step, HALF, BLOCK_HALF)
    q_low, q_high = rotate(q_low, q_high, c_query, s_query)
    if RELATIVE:
        # Adding a product of zeros leaves the tables in the layout of the tensor cores, where rotated keys are needed:
        # the compiler would rotate keys in the layout of the tables' loads, and move them through shared memory.
        zero_m = tl.zeros([WARPS, BN // WARPS, 16], DTYPE)
        zero_n = tl.zeros([WARPS, 16, BLOCK_HALF], DTYPE)
        c_key, s_key = tl.dot(zero_m, zero_n, c_key), tl.dot(zero_m, zero_n, s_key)
        q_low, q_high = rotate_back(q_low, q_high, c_low, s_low)
    acc = tl.zeros([WARPS, BLOCK_D, BLOCK_GROUP], tl.float32)
    top = tl.full([WARPS, BLOCK_GROUP], -1.0e30, tl.float32)
    total = tl.zeros([WARPS, BN // WARPS, BLOCK_GROUP], tl.float32)
    for tile in tl.range(piece.low, piece.high, num_stages=STAGES):
        first_key = tile * step
        a = tl.broadcast_to(q_low.to(DTYPE), [WARPS, BLOCK_HALF, BLOCK_GROUP])
        b = tl.broadcast_to(q_high.to(DTYPE), [WARPS, BLOCK_HALF, BLOCK_GROUP])
        if RELATIVE:  # for the next tile
            q_low, q_high = rotate_back(q_low, q_high, c_step, s_step)
        else:
            used = (first_key + offset < piece.stop)[:, :, None] & inside[None, None, :]
            c_key = tl.load(piece.cos + first_key * HALF + near, mask=used, other=0.0)
            s_key = tl.load(piece.sin + first_key * HALF + near, mask=used, other=0.0)
        k_low, k_high, value = _load_tile(
            keys, values, batch, kv_head, piece.left + first_key, HALF, BLOCK_HALF, BLOCK_D, BN, WARPS, 2 * HALF + REST
        )
        products = score(k_low, k_high, c_key, s_key, a, b)
        if REST > 0:
            k_rest = load_rows_of_warps(
                key_rests,
                (batch, kv_head),
                piece.left + first_key,
                2 * HALF,
                BN,
                BLOCK_REST,
                2 * HALF + REST,
                WARPS,
            )
            products = tl.dot(k_rest, tl.broadcast_to(q_rest, [WARPS, BLOCK_REST, BLOCK_GROUP]), products)
        logits = capped(products * factor, cap)
        key = first_key + offset
        if NOISY:
            logits += noise_of_query(pool, rows, piece.query, key, slope, level, piece.period, POOL)
        seen = (offset < step) & (key >= piece.start) & (key < piece.stop)
        logits = tl.where(seen[:, :, None], logits, float("-inf"))
        acc, top, total = accumulate(logits, value, acc, top, total)
    return merge_warps(acc, top, total, BLOCK_D, BLOCK_GROUP, WARPS)


@triton.jit(do_not_specialize=["splits"])
def decode_kernel(
    q,
    keys,
    key_rests,
    values,
    out,
    lse,
    sinks,
    pieces,
    numbers,
    parts,
    log_totals,
    arrivals,
    pool,
    hash_keys,
    q_batch,
    q_head,
    out_batch,
    out_head,
    splits,
    num_kv_heads,
    factor,
    cap,
    slope_factor,
    level_factor,
    GROUP: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BANDS: tl.constexpr,
    NOISY: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BN: tl.constexpr,
    WARPS: tl.constexpr,
    RELATIVE: tl.constexpr,
    POOL: tl.constexpr,
    BLOCK_MEMBERS: tl.constexpr,
    STAGES: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """See `attend_one`. pieces, numbers, parts, log_totals, arrivals: see `prepared.PreparedStep`."""
    if DEPENDENT:  # launched before the kernel ahead of it in the stream has ended
        tl.extra.cuda.gdc_wait()
    plane, split = tl.program_id(0), tl.program_id(1)  # key heads that read the same tables run side by side
    batch, kv_head = plane // num_kv_heads, plane % num_kv_heads
    piece = load_piece(pieces, batch * splits + split)

    member = tl.arange(0, BLOCK_GROUP)
    head = kv_head * GROUP + tl.minimum(member, GROUP - 1)
    column = tl.arange(0, BLOCK_HALF)[None, :, None]
    source = q + batch.to(tl.int64) * q_batch + head[None, None, :] * q_head
    q_low = tl.load(source + column, mask=column < HALF, other=0.0).to(tl.float32)
    q_high = tl.load(source + HALF + column, mask=column < HALF, other=0.0).to(tl.float32)
    numbers += batch * (1 + BANDS * (1 + 2 * HALF))
    of_band = numbers + 1 + piece.band * (1 + 2 * HALF)
    c_query = load_row(of_band + 1, 0, HALF, BLOCK_HALF)
    s_query = load_row(of_band + 1, 1, HALF, BLOCK_HALF)
    q_rest = q_low
    if REST > 0:
        other = tl.arange(0, BLOCK_REST)[None, :, None]
        q_rest = tl.load(source + 2 * HALF + other, mask=other < REST, other=0.0).to(tl.float32)
        q_rest = (q_rest * tl.load(of_band)).to(q.dtype.element_ty)
    rows, slope, level = head, 0.0, 0.0
    if NOISY:
        hashed = tl.load(hash_keys + head).to(tl.uint32, bitcast=True)
        rows = mix(hashed ^ mix((piece.query // 8).to(tl.uint32)))
        slope, level = tl.load(numbers) * slope_factor, tl.load(numbers) * level_factor

    mean, log_total = _walk(
        piece,
        q_low,
        q_high,
        q_rest,
        c_query,
        s_query,
        keys,
        key_rests,
        values,
        batch,
        kv_head,
        factor,
        cap,
        pool,
        rows,
        slope,
        level,
        BLOCK_GROUP,
        NOISY,
        HALF,
        BLOCK_HALF,
        REST,
        BLOCK_REST,
        BLOCK_D,
        BN,
        WARPS,
        RELATIVE,
        POOL,
        STAGES,
        q.dtype.element_ty,
    )

    d = tl.arange(0, BLOCK_D)
    real = (member < GROUP)[None, :] & (d < 2 * HALF + REST)[:, None]
    part = plane * splits + split
    tl.store(parts + (part * BLOCK_D + d[:, None]) * BLOCK_MEMBERS + member[None, :], mean, mask=real)
    tl.store(log_totals + part * BLOCK_MEMBERS + member, log_total, mask=member < GROUP)
    tl.debug_barrier()
    if tl.atomic_add(arrivals + plane, 1, sem="acq_rel") == splits - 1:
        tl.store(arrivals + plane, 0)  # for the next launch
        merge(
            parts + plane * splits * BLOCK_D * BLOCK_MEMBERS,
            log_totals + plane * splits * BLOCK_MEMBERS,
            out + batch.to(tl.int64) * out_batch + kv_head * GROUP * out_head,
            out_head,
            lse if lse is None else lse + plane * GROUP,
            sinks if sinks is None else sinks + kv_head * GROUP,
            splits,
            GROUP,
            BLOCK_MEMBERS,
            2 * HALF + REST,
            BLOCK_D,
        )
