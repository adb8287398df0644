"""Noise in the prefill kernel for Hopper, in Gluon: what `noise` does in Triton, in the layouts of a group of warps."""

from typing import NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from models.DPI.attention.noise import POOL_SIZE

# Of pairs of deviates (4, 8, 4, 2, 4, 4): lanes of a warp, warps, a thread's rows, blocks of keys, pairs of a block. A
# warp reads 512 bytes in a row, and every deviate is in the thread whose matrix product has its logit.
_LANES = gl.constexpr(gl.BlockedLayout([1, 1, 1, 2, 4, 4], [4, 8, 1, 1, 1, 1], [1, 1, 4, 1, 1, 1], [5, 4, 3, 0, 1, 2]))
_POOL_MASK = gl.constexpr(POOL_SIZE - 8)


class NoiseSource(NamedTuple):
    """What `prefill.prefill_kernel` gets by the same names; past: the index of its first query."""

    pool: gl.tensor | None
    gates: gl.tensor | None
    hash_keys: gl.tensor | None
    std: gl.tensor | None
    past: gl.tensor
    slope: gl.tensor
    level: gl.tensor


class RowNoise(NamedTuple):
    """Of a group's queries: hashes and places in a block of the pool, both (8, 4, 2), as deviates are read; their
    indices, deviations per unit of distance, and deviations, (64,) each.
    """

    hashes: gl.tensor
    within: gl.tensor
    index: gl.tensor
    slope: gl.tensor
    level: gl.tensor


class Gate(NamedTuple):
    """A row of `noise.gates_of`: which keys of a band get no noise."""

    period: gl.tensor
    pattern: gl.tensor


@gluon.jit
def load_gate(noise, number):
    """The `Gate` of a band."""
    row = noise.gates + 2 * number
    return Gate(period=gl.load(row).to(gl.int32), pattern=gl.load(row + 1))


@gluon.jit
def _mix(x):
    """`noise.mix` on uint32."""
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@gluon.jit
def rows_of_group(noise, head, row, first, end):
    """The `RowNoise` of queries first ... first + 63, of which end - 1 is the tile's last. row: (64,), those of them
    that there are.
    """
    layout: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(4, gl.SliceLayout(5, _LANES)))
    lane = gl.arange(0, 8, gl.SliceLayout(1, gl.SliceLayout(2, layout)))[:, None, None]
    warp = gl.arange(0, 4, gl.SliceLayout(0, gl.SliceLayout(2, layout)))[None, :, None]
    pair = gl.arange(0, 2, gl.SliceLayout(0, gl.SliceLayout(1, layout)))[None, None, :]
    index = gl.minimum(first + lane + 16 * warp + 8 * pair, end - 1) + noise.past
    hashed = gl.load(noise.hash_keys + head).to(gl.uint32, bitcast=True)
    deviation = gl.load(noise.std + row)
    return RowNoise(
        hashes=_mix(hashed ^ _mix((index // 8).to(gl.uint32))),
        within=(index & 7) * 32,
        index=row + noise.past,
        slope=deviation * noise.slope,
        level=deviation * noise.level,
    )


@gluon.jit
def deviates(pool, rows, first_key):
    """Of 128 keys, a multiple of 32 the first of them, as `_LANES`. pool: two deviates of fp16 to an int32, which stay
    together while they wait in registers.
    """
    block = gl.arange(
        0, 4, gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(2, gl.SliceLayout(3, gl.SliceLayout(5, _LANES)))))
    )
    lane = gl.arange(
        0, 4, gl.SliceLayout(1, gl.SliceLayout(2, gl.SliceLayout(3, gl.SliceLayout(4, gl.SliceLayout(5, _LANES)))))
    )
    pair = gl.arange(
        0, 4, gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(2, gl.SliceLayout(3, gl.SliceLayout(4, _LANES)))))
    )
    block = (first_key // 32 + block).to(gl.uint32)[None, None, None, None, :, None]
    at = (_mix(rows.hashes[None, :, :, :, None, None] + block) & _POOL_MASK).to(gl.int32)
    at = at + rows.within[None, :, :, :, None, None] + 8 * lane[:, None, None, None, None, None]
    at = at // 2 + pair[None, None, None, None, None, :]
    return gl.load(pool + gl.max_contiguous(gl.multiple_of(at, [1, 1, 1, 1, 1, 4]), [1, 1, 1, 1, 1, 4]))


@gluon.jit
def _without_noise(first_key, gate):
    """64 bits: which of the keys first_key ... get none."""
    past = first_key % gate.period
    ahead = gl.where(past > 0, gate.period - past, 0).to(gl.int64)
    return gl.where(ahead < 64, gate.pattern << (ahead & 63), 0)


@gluon.jit
def add_noise(x, deviate, rows, first_key, gate, layout: gl.constexpr):
    """Logits (64, 128) with noise; see `noise.add_to_tile`, whose arithmetic it is. layout: of x."""
    first, second = deviate.to(gl.int16), (deviate >> 16).to(gl.int16)
    deviate = (
        gl.join(first.to(gl.float16, bitcast=True), second.to(gl.float16, bitcast=True))
        .permute([2, 3, 1, 4, 5, 0, 6])
        .reshape([64, 128])
    )
    deviate = gl.convert_layout(deviate, layout, assert_trivial=True)
    column = gl.arange(0, 128, gl.SliceLayout(0, layout))
    of_thread, constant = column & 6, column & ~6
    distance = rows.level + rows.slope * (rows.index - first_key).to(gl.float32)
    distance = distance[:, None] - rows.slope[:, None] * of_thread.to(gl.float32)[None, :]
    distance = distance - rows.slope[:, None] * constant.to(gl.float32)[None, :]
    closed = gl.where(
        column < 64,
        _without_noise(first_key, gate),
        _without_noise(first_key + 64, gate),
    )
    closed = ((closed >> of_thread.to(gl.int64)) >> (constant & 63).to(gl.int64)) & 1
    return gl.where(closed[None, :] == 0, x + deviate.to(gl.float32) * distance, x)
