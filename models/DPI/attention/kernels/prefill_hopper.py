"""Attention over bands for many queries on Hopper, in Gluon: three groups of warps, each with a part of its own.

Two of them attend, 64 queries each, and take turns at the tensor cores: while one multiplies, the other takes its
softmax. Within a group the product of the logits of a tile of keys runs beside that of the weights of the tile before.
The third has the copy engine fetch queries, keys and values, as far ahead as there is shared memory.

It computes what `prefill.prefill_kernel` computes, without soft caps, and without noise to the bit.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from models.DPI.attention.kernels.launching import on, power_of_2
from models.DPI.attention.kernels.noise_hopper import NoiseSource, add_noise, deviates, load_gate, rows_of_group
from models.DPI.attention.kernels.tiles_hopper import Work, first_key_of, gate_of, place_of, slot_of, span_of
from models.DPI.attention.prepared import Launch, PreparedPrefill

ROWS = 64
"""Queries of a group."""

_KEYS, _STAGES = 128, 2
# Its name in Triton 3.6, and since.
_copy = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
_TYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}
# Finite, so that a query that has seen no key yet gives no NaN.
_LOWEST = gl.constexpr(-1.0e30)
_LN2 = gl.constexpr(0.6931471805599453)
_LOG2_E = gl.constexpr(1.4426950408889634)
_ROWS = gl.constexpr(ROWS)
# Registers of a thread: of those that attend (the first group has what is left, as many), of those that fetch.
_ATTENDING, _FETCHING = gl.constexpr(240), gl.constexpr(24)


def launch(
    queries: Tensor,
    keys: Tensor,
    v: Tensor,
    out: Tensor,
    prepared: PreparedPrefill,
    tiles: Launch,
    *,
    lse: Tensor | None,
    sinks: Tensor | None,
    pool: Tensor | None,
    hash_keys: Tensor | None,
    factors: tuple[float, float],
) -> None:
    """Attend with rotated queries (bands, B, H, T, D) and keys (slots, B, Hkv, N, D). The rest: see `triton.attend`.

    pool, hash_keys: of `noise_tensors`, None where no band has noise. factors: of `noise_factors`.
    """
    batch, heads, num_queries, head_dim = queries.shape[1:]
    kv_heads, num_keys = keys.shape[2:4]
    block_d = power_of_2(head_dim)
    num_tiles = tiles.tiles.shape[0]
    with on(v.device):
        prefill_hopper_kernel[(num_tiles * heads * batch,)](
            _descriptor(queries.flatten(0, 3), [ROWS, block_d]),
            _descriptor(keys.flatten(0, 3), [_KEYS, block_d]),
            _descriptor(v, [1, 1, _KEYS, block_d]),
            out,
            lse,
            sinks,
            prepared.bounds,
            tiles.tiles,
            pool if pool is None else pool.view(torch.int32),
            None if pool is None else prepared.gates,
            hash_keys,
            None if pool is None else prepared.std,
            out.stride(0),
            out.stride(1),
            out.stride(2),
            num_tiles,
            num_queries,
            num_keys,
            heads,
            kv_heads,
            batch,
            num_keys - num_queries,
            *factors,
            GROUP=heads // kv_heads,
            HEAD_DIM=head_dim,
            BANDS=prepared.num_bands,
            NOISY=0 if pool is None else prepared.noisy,
            BN=_KEYS,
            D=block_d,
            STAGES=_STAGES,
            num_warps=4,
        )


def _descriptor(x: Tensor, block: list[int]) -> TensorDescriptor:
    layout = gl.NVMMASharedLayout.get_default_for(block, _TYPES[x.dtype])
    return TensorDescriptor(x, list(x.shape), list(x.stride()), block, layout)


class Target(NamedTuple):
    """Where the result goes, with the strides of out, and the sinks."""

    out: gl.tensor
    lse: gl.tensor | None
    sinks: gl.tensor | None
    batch: gl.tensor
    head: gl.tensor
    token: gl.tensor


class Rings(NamedTuple):
    """Tiles in shared memory with their barriers: full ones may be read, empty ones written.

    queries: (2 * 2, 64, D), for two bands in turn both groups'. keys, values: (stages, BN, D), values as
    descriptors see them too, (stages, 1, 1, BN, D). turns: whose of the two groups it is to multiply.
    """

    query_tiles: gl.shared_memory_descriptor
    key_tiles: gl.shared_memory_descriptor
    value_tiles: gl.shared_memory_descriptor
    queries_full: gl.shared_memory_descriptor
    queries_empty: gl.shared_memory_descriptor
    keys_full: gl.shared_memory_descriptor
    values_full: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor
    turns: gl.shared_memory_descriptor


@gluon.jit
def _fetch(
    queries,
    keys,
    values,
    work,
    place,
    rings,
    BANDS: gl.constexpr,
    BN: gl.constexpr,
    D: gl.constexpr,
    STAGES: gl.constexpr,
):
    """A round fetches the keys of a tile and the values of the tile before, the last one values only."""
    bytes_of_tile: gl.constexpr = BN * D * 2
    item = 0
    before = 0
    used_even = 0
    used_odd = 0
    for band in gl.static_range(BANDS):
        span = span_of(work, place, band, BANDS, BN)
        if span.first < span.end:
            slot: gl.constexpr = band % 2
            used = used_odd if slot else used_even
            mbarrier.wait(rings.queries_empty.index(slot), (used & 1) ^ 1)
            mbarrier.expect(rings.queries_full.index(slot), 2 * _ROWS * D * 2)
            plane = (band * work.batch_size + place.batch) * work.num_heads + place.head
            row = plane * work.num_queries + place.first
            for half in gl.static_range(2):
                _copy(
                    queries,
                    [row + half * _ROWS, 0],
                    rings.queries_full.index(slot),
                    rings.query_tiles.index(2 * slot + half),
                )
            if slot:
                used_odd += 1
            else:
                used_even += 1
            plane = slot_of(place, band) * work.batch_size + place.batch
            row = (plane * work.num_kv_heads + place.kv_head) * work.num_keys
            for tile in range(span.end - span.first):
                key = first_key_of(tile, span, BN)
                # Any finite values serve the first round, whose weights are 0: its own tile's.
                before = gl.where(item == 0, key, before)
                ring = item % STAGES
                mbarrier.wait(rings.empty.index(ring), ((item // STAGES) & 1) ^ 1)
                full = rings.keys_full.index(ring)
                mbarrier.expect(full, bytes_of_tile)
                _copy(keys, [row + key, 0], full, rings.key_tiles.index(ring))
                full = rings.values_full.index(ring)
                mbarrier.expect(full, bytes_of_tile)
                place_of_values = [place.batch, place.kv_head, before, 0]
                _copy(values, place_of_values, full, rings.value_tiles.index(ring))
                before = key
                item += 1
    if item > 0:
        ring = item % STAGES
        mbarrier.wait(rings.empty.index(ring), ((item // STAGES) & 1) ^ 1)
        full = rings.values_full.index(ring)
        mbarrier.expect(full, bytes_of_tile)
        place_of_values = [place.batch, place.kv_head, before, 0]
        _copy(values, place_of_values, full, rings.value_tiles.index(ring))


@gluon.jit
def _empty_softmax(target, place, rows: gl.constexpr):
    """The maximum and the sum before the first key; a sink is like one."""
    top = gl.full([_ROWS], _LOWEST, gl.float32, rows)
    total = gl.zeros([_ROWS], gl.float32, rows)
    if target.sinks is not None:
        top = gl.zeros([_ROWS], gl.float32, rows) + gl.load(target.sinks + place.head).to(gl.float32) * _LOG2_E
        total += 1.0
    return top, total


@gluon.jit
def _seen(s, first_key, start, length, BN: gl.constexpr, layout: gl.constexpr):
    """Logits without those of keys that are not among the `length` ones from `start`."""
    key = first_key + gl.arange(0, BN, gl.SliceLayout(0, layout))
    # Without a sign, so that one comparison sees keys ahead of the band and behind it.
    ahead = (key[None, :] - start[:, None]).to(gl.uint32, bitcast=True)
    return gl.where(ahead < length.to(gl.uint32, bitcast=True)[:, None], s, float("-inf"))


@gluon.jit
def _softmax(s, top, total):
    """A tile's weights, the factor for what was summed before, and the running maximum and sum."""
    new_top = gl.maximum(top, gl.max(s, 1))
    shrink = gl.exp2(top - new_top)
    weights = gl.exp2(s - new_top[:, None])
    return weights, shrink, new_top, total * shrink + gl.sum(weights, 1)


@gluon.jit
def _attend(
    target,
    work,
    place,
    rings,
    noise,
    HALF: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    BANDS: gl.constexpr,
    NOISY: gl.constexpr,
    BN: gl.constexpr,
    D: gl.constexpr,
    STAGES: gl.constexpr,
):
    """A group's queries. A round multiplies them by a tile's keys, and weights by the values of the tile before."""
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    rows: gl.constexpr = gl.SliceLayout(1, s_layout)
    o_rows: gl.constexpr = gl.SliceLayout(1, o_layout)
    element: gl.constexpr = rings.query_tiles.dtype
    nothing = gl.zeros([_ROWS, BN], gl.float32, s_layout)
    # Rows beyond the tile's end repeat its last query and are not written.
    row = gl.minimum(place.first + HALF * _ROWS + gl.arange(0, _ROWS, rows), place.end - 1)
    o = gl.zeros([_ROWS, D], gl.float32, o_layout)
    p = gl.zeros([_ROWS, BN], element, p_layout)
    top, total = _empty_softmax(target, place, rows)
    if NOISY:
        row_noise = rows_of_group(noise, place.head, row, place.first + HALF * _ROWS, place.end)
    item = 0
    used_even = 0
    used_odd = 0
    for band in gl.static_range(BANDS):
        span = span_of(work, place, band, BANDS, BN)
        if span.first < span.end:
            if (NOISY >> band) & 1:
                gate = load_gate(noise, gate_of(place, band))
            start = gl.load(work.bounds + band * work.num_queries + row)
            length = gl.load(work.bounds + (BANDS + band) * work.num_queries + row) - start
            # A place known when compiling: ptxas 12.8 takes one that is not from a loop that did not run.
            slot: gl.constexpr = band % 2
            used = used_odd if slot else used_even
            mbarrier.wait(rings.queries_full.index(slot), used & 1)
            q = rings.query_tiles.index(2 * slot + HALF)
            whole = span.end_whole - span.first_whole
            if (NOISY >> band) & 1:
                deviate = deviates(noise.pool, row_noise, first_key_of(0, span, BN))
            for masked in gl.static_range(2):
                for tile in range(whole if masked else 0, span.end - span.first if masked else whole):
                    ring, phase = item % STAGES, (item // STAGES) & 1
                    mbarrier.wait(rings.keys_full.index(ring), phase)
                    mbarrier.wait(rings.turns.index(HALF), item & 1)
                    k = rings.key_tiles.index(ring).permute((1, 0))
                    s = warpgroup_mma(q, k, nothing, use_acc=False, is_async=True)
                    mbarrier.wait(rings.values_full.index(ring), phase)
                    o = warpgroup_mma(p, rings.value_tiles.index(ring).reshape([BN, D]), o, is_async=True)
                    mbarrier.arrive(rings.turns.index(1 - HALF), count=1)
                    s = warpgroup_mma_wait(1, deps=[s])
                    if (NOISY >> band) & 1:
                        s = add_noise(s, deviate, row_noise, first_key_of(tile, span, BN), gate, s_layout)
                        deviate = deviates(noise.pool, row_noise, first_key_of(tile + 1, span, BN))  # a round ahead
                    if masked:
                        s = _seen(s, first_key_of(tile, span, BN), start, length, BN, s_layout)
                    weights, shrink, top, total = _softmax(s, top, total)
                    o, p = warpgroup_mma_wait(0, deps=[o, p])
                    mbarrier.arrive(rings.empty.index(ring), count=1)
                    o = o * gl.convert_layout(shrink, o_rows)[:, None]
                    p = gl.convert_layout(weights.to(element), p_layout)
                    item += 1
            mbarrier.arrive(rings.queries_empty.index(slot), count=1)
            if slot:
                used_odd += 1
            else:
                used_even += 1
    if item > 0:
        mbarrier.wait(rings.values_full.index(item % STAGES), (item // STAGES) & 1)
        o = warpgroup_mma(p, rings.value_tiles.index(item % STAGES).reshape([BN, D]), o, is_async=True)
        o, p = warpgroup_mma_wait(0, deps=[o, p])
    _write(o, top, total, target, work, place, HALF, HEAD_DIM, D, rows, o_rows, o_layout)


@gluon.jit
def _write(
    o,
    top,
    total,
    target,
    work,
    place,
    HALF: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    D: gl.constexpr,
    rows: gl.constexpr,
    o_rows: gl.constexpr,
    o_layout: gl.constexpr,
):
    inverse = 1.0 / gl.where(total > 0, total, 1.0)  # a query that sees no key gives 0
    o = o * gl.convert_layout(inverse, o_rows)[:, None]
    row = place.first + HALF * _ROWS + gl.arange(0, _ROWS, o_rows)
    column = gl.arange(0, D, gl.SliceLayout(0, o_layout))
    at = target.out + place.batch.to(gl.int64) * target.batch + place.head.to(gl.int64) * target.head
    at = at + row.to(gl.int64)[:, None] * target.token + column[None, :]
    written = (row < place.end)[:, None]
    if HEAD_DIM < D:
        written = written & (column < HEAD_DIM)[None, :]
    gl.store(at, o.to(target.out.dtype.element_ty), mask=written)
    if target.lse is not None:
        row = place.first + HALF * _ROWS + gl.arange(0, _ROWS, rows)
        at = target.lse + (place.batch * work.num_heads + place.head).to(gl.int64) * work.num_queries + row
        gl.store(at, (top + gl.log2(total)) * _LN2, mask=row < place.end)


@gluon.jit
def _barriers(count: gl.constexpr, arrivals: gl.constexpr):
    barriers = gl.allocate_shared_memory(gl.int64, [count, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(count):
        mbarrier.init(barriers.index(i), count=arrivals)
    return barriers


@gluon.jit(do_not_specialize=["num_tiles", "num_queries", "num_keys", "batch_size", "past"])
def prefill_hopper_kernel(
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
    num_keys,
    num_heads,
    num_kv_heads,
    batch_size,
    past,
    slope_factor,
    level_factor,
    GROUP: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    BANDS: gl.constexpr,
    NOISY: gl.constexpr,
    BN: gl.constexpr,
    D: gl.constexpr,
    STAGES: gl.constexpr,
):
    """As `prefill.prefill_kernel`. Rotated queries: (BANDS * B * H * T, D), rotated keys: (slots * B * Hkv * N, D)."""
    rings = Rings(
        query_tiles=gl.allocate_shared_memory(queries.dtype, [4, _ROWS, D], queries.layout),
        key_tiles=gl.allocate_shared_memory(keys.dtype, [STAGES, BN, D], keys.layout),
        value_tiles=gl.allocate_shared_memory(values.dtype, [STAGES, 1, 1, BN, D], values.layout),
        queries_full=_barriers(2, 1),
        queries_empty=_barriers(2, 2),
        keys_full=_barriers(STAGES, 1),
        values_full=_barriers(STAGES, 1),
        empty=_barriers(STAGES, 2),
        turns=_barriers(2, 1),
    )
    fence_async_shared()
    mbarrier.arrive(rings.turns.index(0), count=1)
    target = Target(out, lse, sinks, out_batch, out_head, out_token)
    work = Work(bounds, tiles, num_tiles, num_queries, num_keys, num_heads, num_kv_heads, batch_size)
    place = place_of(gl.program_id(0), work, GROUP, BANDS)
    noise = NoiseSource(pool, gates, hash_keys, std, past, slope_factor, level_factor)
    gl.warp_specialize(
        [
            (_attend, (target, work, place, rings, noise, gl.constexpr(0), HEAD_DIM, BANDS, NOISY, BN, D, STAGES)),
            (_attend, (target, work, place, rings, noise, gl.constexpr(1), HEAD_DIM, BANDS, NOISY, BN, D, STAGES)),
            (_fetch, (queries, keys, values, work, place, rings, BANDS, BN, D, STAGES)),
        ],
        [4, 1],
        [_ATTENDING, _FETCHING],
    )
