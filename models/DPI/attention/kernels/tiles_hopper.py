"""What a program of the prefill for Hopper has to do, in Gluon: a tile of queries, and its bands' tiles of keys."""

from typing import NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from models.DPI.attention.kernels.tiles import Tile, TileBand

# Columns of the records of `tiles`.
_TILE_COLUMNS, _BAND_COLUMNS = gl.constexpr(len(Tile._fields)), gl.constexpr(len(TileBand._fields))
_FIRST, _END = gl.constexpr(Tile._fields.index("first")), gl.constexpr(Tile._fields.index("end"))
_SLOT, _GATE = gl.constexpr(TileBand._fields.index("slot")), gl.constexpr(TileBand._fields.index("gate"))


class Work(NamedTuple):
    """What there is to do: see `prefill.prefill_kernel`."""

    bounds: gl.tensor
    tiles: gl.tensor
    num_tiles: gl.tensor
    num_queries: gl.tensor
    num_keys: gl.tensor
    num_heads: gl.tensor
    num_kv_heads: gl.tensor
    batch_size: gl.tensor


class Place(NamedTuple):
    """A tile of queries: first ... end - 1 of a head. record: its columns, see `tiles.Tile`, `tiles.TileBand`."""

    batch: gl.tensor
    head: gl.tensor
    kv_head: gl.tensor
    record: gl.tensor
    first: gl.tensor
    end: gl.tensor


class Span(NamedTuple):
    """Tiles of keys of a band: first ... end - 1, of which every query sees first_whole ... end_whole - 1 whole."""

    first: gl.tensor
    first_whole: gl.tensor
    end_whole: gl.tensor
    end: gl.tensor


@gluon.jit
def place_of(number, work, GROUP: gl.constexpr, BANDS: gl.constexpr):
    """All tiles and query heads of one key head run side by side, so that its keys stay in the L2 cache."""
    plane = number // (work.num_tiles * GROUP)
    rest = number % (work.num_tiles * GROUP)
    kv_head = plane % work.num_kv_heads
    record = work.tiles + (rest // GROUP) * (_TILE_COLUMNS + _BAND_COLUMNS * BANDS)
    return Place(
        batch=plane // work.num_kv_heads,
        head=kv_head * GROUP + rest % GROUP,
        kv_head=kv_head,
        record=record,
        first=gl.load(record + _FIRST),
        end=gl.load(record + _END),
    )


@gluon.jit
def span_of(work, place, band, BANDS: gl.constexpr, BN: gl.constexpr):
    """A band's tiles of BN keys."""
    starts = work.bounds + band * work.num_queries
    stops = work.bounds + (BANDS + band) * work.num_queries
    low, low_end = gl.load(starts + place.first), gl.load(starts + place.end - 1)
    high_start, high = gl.load(stops + place.first), gl.load(stops + place.end - 1)
    first = low // BN
    end = gl.where(low < high, (high + BN - 1) // BN, first)
    first_whole = gl.minimum((low_end + BN - 1) // BN, end)
    end_whole = gl.minimum(gl.maximum(high_start // BN, first_whole), end)
    return Span(first, first_whole, end_whole, end)


@gluon.jit
def first_key_of(number, span, BN: gl.constexpr):
    """The first key of a band's tile: whole tiles come first, then those on a boundary."""
    whole = span.end_whole - span.first_whole
    boundary = span.first + number - whole
    boundary = gl.where(boundary >= span.first_whole, boundary + whole, boundary)
    return gl.where(number < whole, span.first_whole + number, boundary) * BN


@gluon.jit
def slot_of(place, band):
    """Of a band's rotated keys."""
    return gl.load(place.record + _TILE_COLUMNS + _BAND_COLUMNS * band + _SLOT)


@gluon.jit
def gate_of(place, band):
    """A band's row of `gates`."""
    return gl.load(place.record + _TILE_COLUMNS + _BAND_COLUMNS * band + _GATE)
