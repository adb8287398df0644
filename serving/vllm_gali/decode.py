"""Attention over bands on a paged cache for one query of each request: a Triton kernel, the keys split among programs.

It works as `models.DPI.attention.kernels.decode` does, whose parts it uses, and differs in where things are: keys are
read through the block table, and a program finds its request in its record, so that requests of any lengths share a
launch, each cut into as many programs as its keys are worth.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm_gali.gali_kernels import (
    accumulate,
    load_row,
    merge,
    merge_warps,
    on,
    rotate,
    rotate_back,
    score,
    softcap_factors,
)
from vllm_gali.pieces import WARPS, Step, load_piece


def attend(query: Tensor, cache: Tensor, step: Step, scaling: float, out: Tensor) -> None:
    """Attention of the step's queries that `pieces.prepare` was told of.

    query, out: (N, H, D); cache: see `paged`. Raises RuntimeError where another step has been prepared since.
    """
    if step.room.step is not step:
        raise RuntimeError("gali: a later step was prepared in this one's tensors; attend before the next is prepared")
    kv_heads, page = cache.shape[1], cache.shape[2]
    recording = query.is_cuda and torch.cuda.is_current_stream_capturing()
    options: dict[str, Any] = dict(step.options)
    early = query.is_cuda and torch.cuda.get_device_capability(query.device) >= (9, 0)
    if early:
        options["launch_pdl"] = True
    for pieces in step.launches:
        count = pieces.records.shape[0] if recording else pieces.used
        if count == 0:
            continue
        with on(query.device):
            decode_pages_kernel[kv_heads, count](
                query,
                cache,
                step.block_table,
                out,
                pieces.records,
                step.queries,
                step.parts,
                step.log_totals,
                step.arrivals,
                query.stride(0),
                query.stride(1),
                out.stride(0),
                out.stride(1),
                cache.stride(0),
                cache.stride(1),
                cache.stride(2),
                step.block_table.stride(0),
                kv_heads,
                softcap_factors(scaling, None)[0],
                PAGE=page,
                RELATIVE=pieces.relative,
                STAGES=_stages(pieces.relative, step.options["BLOCK_D"]),
                DEPENDENT=early,
                num_warps=WARPS,
                enable_fp_fusion=True,
                maxnreg=255,
                **options,
            )


def _stages(relative: bool, block_d: int) -> int:
    """Of the loop over tiles. With five, numbers of blocks are read two tiles ahead of the keys that need them, and
    those two tiles ahead of their use; with four, one of each. Three and seven were slower.
    """
    return 5 if relative and block_d <= 128 else 4


@triton.jit
def _load_tile(place, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_D: tl.constexpr):
    """Halves of keys (warps, keys, D/2), and values (warps, D, keys), whose places in the cache are (warps, keys).

    Values are loaded the way round that the tensor cores take them: turned later, they would pass through registers.
    """
    column = tl.arange(0, BLOCK_HALF)[None, None, :]
    d = tl.arange(0, BLOCK_D)[None, :, None]
    k_low = tl.load(place[:, :, None] + column, mask=column < HALF, other=0.0)
    k_high = tl.load(place[:, :, None] + (HALF + column), mask=column < HALF, other=0.0)
    return k_low, k_high, tl.load(place[:, None, :] + (2 * HALF + d), mask=d < 2 * HALF, other=0.0)


@triton.jit
def _places(cache, blocks, key, stop, cache_block, cache_token, PAGE: tl.constexpr):
    """Where keys are. Places behind the last may hold anything, and be other requests': the last is read instead."""
    key = tl.minimum(key, stop - 1)
    return cache + tl.load(blocks + key // PAGE).to(tl.int64) * cache_block + (key % PAGE) * cache_token


@triton.jit
def _walk(
    piece,
    q_low,
    q_high,
    c_query,
    s_query,
    cache,
    blocks,
    cache_block,
    cache_token,
    factor,
    BLOCK_GROUP: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BN: tl.constexpr,
    WARPS: tl.constexpr,
    PAGE: tl.constexpr,
    RELATIVE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The softmax over the tiles of a piece, each warp's over keys of its own; see `decode._walk`.

    cache: where its key head begins. blocks: its request's row of the block table.
    """
    dtype: tl.constexpr = cache.dtype.element_ty
    column = tl.arange(0, BLOCK_HALF)
    inside = column < HALF
    offset = (tl.arange(0, WARPS) * (BN // WARPS))[:, None] + tl.arange(0, BN // WARPS)[None, :]
    near = offset[:, :, None] * HALF + column[None, None, :]
    step = piece.step
    if RELATIVE:
        used = (offset < step)[:, :, None] & inside[None, None, :]
        c_key, s_key = tl.load(piece.cos + near, mask=used, other=0.0), tl.load(piece.sin + near, mask=used, other=0.0)
        first_key = piece.low * step
        c_low = load_row(piece.cos, first_key, HALF, BLOCK_HALF)
        s_low = load_row(piece.sin, first_key, HALF, BLOCK_HALF)
        c_step = load_row(piece.cos, step, HALF, BLOCK_HALF)
        s_step = load_row(piece.sin, step, HALF, BLOCK_HALF)
    q_low, q_high = rotate(q_low, q_high, c_query, s_query)
    if RELATIVE:
        # Leaves the tables in the layout of the tensor cores, see `decode._walk`.
        zero_m = tl.zeros([WARPS, BN // WARPS, 16], dtype)
        zero_n = tl.zeros([WARPS, 16, BLOCK_HALF], dtype)
        c_key, s_key = tl.dot(zero_m, zero_n, c_key), tl.dot(zero_m, zero_n, s_key)
        q_low, q_high = rotate_back(q_low, q_high, c_low, s_low)
    acc = tl.zeros([WARPS, BLOCK_D, BLOCK_GROUP], tl.float32)
    top = tl.full([WARPS, BLOCK_GROUP], -1.0e30, tl.float32)
    total = tl.zeros([WARPS, BN // WARPS, BLOCK_GROUP], tl.float32)
    for tile in tl.range(piece.low, piece.high, num_stages=STAGES):
        first_key = tile * step
        a = tl.broadcast_to(q_low.to(dtype), [WARPS, BLOCK_HALF, BLOCK_GROUP])
        b = tl.broadcast_to(q_high.to(dtype), [WARPS, BLOCK_HALF, BLOCK_GROUP])
        if RELATIVE:  # for the next tile
            q_low, q_high = rotate_back(q_low, q_high, c_step, s_step)
        else:
            used = (first_key + offset < piece.stop)[:, :, None] & inside[None, None, :]
            c_key = tl.load(piece.cos + first_key * HALF + near, mask=used, other=0.0)
            s_key = tl.load(piece.sin + first_key * HALF + near, mask=used, other=0.0)
        key = first_key + offset
        place = _places(cache, blocks, key, piece.stop, cache_block, cache_token, PAGE)
        k_low, k_high, value = _load_tile(place, HALF, BLOCK_HALF, BLOCK_D)
        logits = score(k_low, k_high, c_key, s_key, a, b) * factor
        seen = (offset < step) & (key >= piece.start) & (key < piece.stop)
        logits = tl.where(seen[:, :, None], logits, float("-inf"))
        acc, top, total = accumulate(logits, value, acc, top, total)
    return merge_warps(acc, top, total, BLOCK_D, BLOCK_GROUP, WARPS)


@triton.jit
def decode_pages_kernel(
    q,
    cache,
    block_table,
    out,
    records,
    queries,
    parts,
    log_totals,
    arrivals,
    q_token,
    q_head,
    out_token,
    out_head,
    cache_block,
    cache_head,
    cache_token,
    table_row,
    num_kv_heads,
    factor,
    GROUP: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BN: tl.constexpr,
    WARPS: tl.constexpr,
    PAGE: tl.constexpr,
    RELATIVE: tl.constexpr,
    BLOCK_MEMBERS: tl.constexpr,
    STAGES: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """See `attend`, and `Step` for what it reads. Strides are in elements."""
    if DEPENDENT:  # launched before the kernel ahead of it in the stream has ended
        tl.extra.cuda.gdc_wait()
    kv_head = tl.program_id(0)  # heads of a block, which lie side by side, are read at the same time
    piece = load_piece(records, tl.program_id(1))
    if piece.share > 0:
        member = tl.arange(0, BLOCK_GROUP)
        head = kv_head * GROUP + tl.minimum(member, GROUP - 1)
        column = tl.arange(0, BLOCK_HALF)[None, :, None]
        source = q + piece.token.to(tl.int64) * q_token + head[None, None, :] * q_head + column
        q_low = tl.load(source, mask=column < HALF, other=0.0).to(tl.float32)
        q_high = tl.load(source + HALF, mask=column < HALF, other=0.0).to(tl.float32)
        c_query = load_row(queries, 2 * piece.table, HALF, BLOCK_HALF)
        s_query = load_row(queries, 2 * piece.table + 1, HALF, BLOCK_HALF)
        mean, log_total = _walk(
            piece,
            q_low,
            q_high,
            c_query,
            s_query,
            cache + kv_head.to(tl.int64) * cache_head,
            block_table + piece.row.to(tl.int64) * table_row,
            cache_block,
            cache_token,
            factor,
            BLOCK_GROUP,
            HALF,
            BLOCK_HALF,
            BLOCK_D,
            BN,
            WARPS,
            PAGE,
            RELATIVE,
            STAGES,
        )

        d = tl.arange(0, BLOCK_D)
        real = (member < GROUP)[None, :] & (d < 2 * HALF)[:, None]
        first_part = (piece.first * num_kv_heads + kv_head * piece.share).to(tl.int64)
        parts += first_part * BLOCK_D * BLOCK_MEMBERS
        log_totals += first_part * BLOCK_MEMBERS
        tl.store(parts + (piece.number * BLOCK_D + d[:, None]) * BLOCK_MEMBERS + member[None, :], mean, mask=real)
        tl.store(log_totals + piece.number * BLOCK_MEMBERS + member, log_total, mask=member < GROUP)
        tl.debug_barrier()
        arrival = arrivals + piece.row * num_kv_heads + kv_head
        if tl.atomic_add(arrival, 1, sem="acq_rel") == piece.share - 1:
            tl.store(arrival, 0)  # for the next launch
            merge(
                parts,
                log_totals,
                out + piece.token.to(tl.int64) * out_token + kv_head * GROUP * out_head,
                out_head,
                None,
                None,
                piece.share,
                GROUP,
                BLOCK_MEMBERS,
                2 * HALF,
                BLOCK_D,
            )
