"""Prefill cut into tiles: what the kernel reads of a row's bands, in a few tensors on the device.

A tile is a run of queries of one segment, one program for each query head. Its record is a `Tile`, then a `TileBand`
for each band; the classes name the columns for the host, which writes records, and for the kernel, which loads them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from models.DPI.attention.bands import Band, Row, Segment
from models.DPI.attention.cards import HOPPER, Card
from models.DPI.attention.kernels.noise import gates_of, period_of
from models.DPI.attention.prepared import Launch, PreparedPrefill
from models.DPI.attention.tables import KeyTable

# Bytes of rotated keys held at a time: segments share a launch while their tables fit.
KEY_BYTES = 1 << 29


class Tile(NamedTuple):
    """Queries first ... end - 1 of the call."""

    first: int
    end: int


class TileBand(NamedTuple):
    """Of a tile's band: the slot of its rotated keys, and its row of `gates`."""

    slot: int
    gate: int


# Default arguments of the loaders: unlike a module's names, Triton does not compare them at every launch.
_TILE = Tile(*range(len(Tile._fields)))
_BAND = TileBand(*range(len(TileBand._fields)))
_TILE_COLUMNS, _BAND_COLUMNS = len(_TILE), len(_BAND)


@triton.jit
def record_of_tile(
    tiles,
    number,
    BANDS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr = _TILE_COLUMNS,
    BAND_COLUMNS: tl.constexpr = _BAND_COLUMNS,
):
    """Where the record of tile `number` begins."""
    return tiles + number * (TILE_COLUMNS + BAND_COLUMNS * BANDS)


@triton.jit
def load_tile(record, FIRST: tl.constexpr = _TILE.first, END: tl.constexpr = _TILE.end):
    """The `Tile` of a record."""
    return Tile(first=tl.load(record + FIRST), end=tl.load(record + END))


@triton.jit
def load_tile_band(
    record,
    band,
    SLOT: tl.constexpr = _BAND.slot,
    GATE: tl.constexpr = _BAND.gate,
    TILE_COLUMNS: tl.constexpr = _TILE_COLUMNS,
    BAND_COLUMNS: tl.constexpr = _BAND_COLUMNS,
):
    """The `TileBand` of a record for one of its bands."""
    record += TILE_COLUMNS + BAND_COLUMNS * band
    return TileBand(slot=tl.load(record + SLOT), gate=tl.load(record + GATE))


@dataclass(frozen=True)
class Tiling:
    """Queries and keys of a tile, warps, and tiles of keys in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


def tiling(head_dim: int, num_queries: int, noisy: bool, card: Card = HOPPER) -> Tiling:
    """Measured on an H100, see benchmarks/RESULTS.md; for cards without a copy engine, what fits them."""
    if not card.has_copy_engine:
        return _small_tiling(head_dim, num_queries, noisy)
    if noisy:  # two small programs hide each other's reads of the pool
        return Tiling(64, 64 if head_dim <= 128 else 32, 4, 2)
    if head_dim > 128:
        return Tiling(64, 64, 4, 2) if num_queries <= 64 else Tiling(128, 64, 8, 2)
    return Tiling(64, 64, 4, 3) if num_queries <= 64 else Tiling(128, 128, 8, 3)


def _small_tiling(head_dim: int, num_queries: int, noisy: bool) -> Tiling:
    """Without a copy engine, for 99 KiB of shared memory.

    The compiler gives each warp rows of its own, whose weights stay in its registers, where a tile has at least as many
    queries as components; registers are too few for that with heads wider than 128.
    """
    if head_dim > 128:
        return Tiling(64, 32, 4, 2)
    if head_dim > 64:
        return Tiling(64, 32, 4, 2) if num_queries <= 64 else Tiling(128, 32 if noisy else 64, 8, 2 if noisy else 3)
    return Tiling(64, 64, 4, 2) if noisy or num_queries <= 64 else Tiling(128, 64, 4, 3)


def prepare(row: Row, key_bytes: int, tile: Tiling, device: torch.device) -> PreparedPrefill:
    """What the kernel reads of the row's bands. key_bytes: of the keys rotated by one table."""
    segments = row.segments
    num_bands = max(len(segment.bands) for segment in segments)
    first = segments[0].first
    total = row.num_queries
    half = segments[0].bands[0].frequencies.rotary_dim // 2
    bounds = torch.zeros(2, num_bands, total, dtype=torch.int32)
    cos, sin = (torch.zeros(num_bands, total, half, device=device) for _ in range(2))
    rest = torch.ones(num_bands, total)
    std = torch.zeros(total)
    noisy = 0
    periods: list[int | None] = [None]
    for segment in segments:
        at = slice(segment.first - first, segment.last - first)
        if segment.noise_std is not None:
            std[at] = segment.noise_std
        for b, band in numbered(segment, num_bands):
            bounds[0, b, at], bounds[1, b, at] = band.start, band.stop
            cos[b, at], sin[b, at] = band.query_tables(device)
            rest[b, at] = torch.as_tensor(band.logit_scale, dtype=torch.float32)
            period = period_of(segment, band)
            noisy |= (period is not None) << b
            if period not in periods:
                periods.append(period)
    groups = _groups(segments, max(1, KEY_BYTES // key_bytes))
    launches = tuple(_launch(group, first, num_bands, periods, tile, device) for group in groups)
    return PreparedPrefill(
        launches=launches,
        num_slots=max(len(launch.tables) for launch in launches),
        num_bands=num_bands,
        bounds=bounds.to(device),
        cos=cos,
        sin=sin,
        rest=rest.to(device),
        gates=gates_of(periods, device),
        std=std.to(device),
        noisy=noisy,
    )


def numbered(segment: Segment, num_bands: int) -> Iterator[tuple[int, Band]]:
    """Bands with their numbers; a segment with fewer than others has the last ones, where no noise is."""
    return enumerate(segment.bands, start=num_bands - len(segment.bands))


def _groups(segments: Sequence[Segment], max_tables: int) -> Iterator[list[Segment]]:
    """Runs of segments that need at most so many tables, or a single segment."""
    group: list[Segment] = []
    tables: set[KeyTable] = set()
    for segment in segments:
        own = {band.table for band in segment.bands}
        if group and len(tables | own) > max_tables:
            yield group
            group, tables = [], set()
        group.append(segment)
        tables |= own
    yield group


def _launch(
    group: list[Segment], first: int, num_bands: int, periods: list[int | None], tile: Tiling, device: torch.device
) -> Launch:
    slots: dict[KeyTable, tuple[int, int, int]] = {}  # its number, and the keys that need the table
    records: list[list[int]] = []
    for segment in group:
        bands = [TileBand(slot=0, gate=0)] * num_bands
        for b, band in numbered(segment, num_bands):
            low, high = int(band.start[0]), int(band.stop[-1])
            number, seen_low, seen_high = slots.get(band.table, (len(slots), low, high))
            slots[band.table] = (number, min(low, seen_low), max(high, seen_high))
            bands[b] = TileBand(slot=number, gate=periods.index(period_of(segment, band)))
        columns = [column for one in bands for column in one]
        begin, end = segment.first - first, segment.last - first
        # Tiles begin at multiples of 8 queries, as blocks of noise do.
        for at in range(begin - segment.first % 8, end, tile.queries):
            records.append([*Tile(first=max(at, begin), end=min(at + tile.queries, end)), *columns])
    records.reverse()  # later queries see more keys: the long tiles go first
    tables = tuple((table, low, high) for table, (_, low, high) in slots.items())
    return Launch(tables, torch.tensor(records, dtype=torch.int32).to(device), len(group))
