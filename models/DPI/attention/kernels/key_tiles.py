"""Keys cut into tiles for the backward pass: which queries see each, through which tables.

A tile of keys is one program for each key head. Its runs are the tables that rotate its keys, and the entries of a run
are the bands of segments that use the table, each with the queries that see the tile. As in `tiles`, the classes name
the columns of the records for the host and for the kernel.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.DPI.attention.bands import Band, Row, Segment
from models.DPI.attention.kernels.tiles import numbered
from models.DPI.attention.prepared import KeyTiles, PreparedPrefill
from models.DPI.attention.tables import KeyTable


class Run(NamedTuple):
    """Entries first ... end - 1 of a tile, whose keys are rotated by the table of one slot."""

    slot: int
    first: int
    end: int


class Entry(NamedTuple):
    """Of a band of a segment: queries low ... high - 1 of the call may see some of the tile's keys, queries low_whole
    ... high_whole - 1, if there are any, see all of them.
    """

    band: int
    low: int
    low_whole: int
    high_whole: int
    high: int


# Default arguments of the loaders: unlike a module's names, Triton does not compare them at every launch.
_RUN = Run(*range(len(Run._fields)))
_ENTRY = Entry(*range(len(Entry._fields)))
_RUN_COLUMNS, _ENTRY_COLUMNS = len(_RUN), len(_ENTRY)


@triton.jit
def load_run(
    runs,
    number,
    COLUMNS: tl.constexpr = _RUN_COLUMNS,
    SLOT: tl.constexpr = _RUN.slot,
    FIRST: tl.constexpr = _RUN.first,
    END: tl.constexpr = _RUN.end,
):
    """The `Run` of record `number`."""
    record = runs + number * COLUMNS
    return Run(slot=tl.load(record + SLOT), first=tl.load(record + FIRST), end=tl.load(record + END))


@triton.jit
def load_entry(
    entries,
    number,
    COLUMNS: tl.constexpr = _ENTRY_COLUMNS,
    BAND: tl.constexpr = _ENTRY.band,
    LOW: tl.constexpr = _ENTRY.low,
    LOW_WHOLE: tl.constexpr = _ENTRY.low_whole,
    HIGH_WHOLE: tl.constexpr = _ENTRY.high_whole,
    HIGH: tl.constexpr = _ENTRY.high,
):
    """The `Entry` of record `number`."""
    record = entries + number * COLUMNS
    return Entry(
        band=tl.load(record + BAND),
        low=tl.load(record + LOW),
        low_whole=tl.load(record + LOW_WHOLE),
        high_whole=tl.load(record + HIGH_WHOLE),
        high=tl.load(record + HIGH),
    )


def cut(row: Row, prepared: PreparedPrefill, size: int, device: torch.device) -> tuple[KeyTiles, ...]:
    """Tiles of so many of the row's keys, for the queries of each launch."""
    found = []
    at = 0
    for launch in prepared.launches:
        segments = row.segments[at : at + launch.num_segments]
        slots = {table: slot for slot, (table, _, _) in enumerate(launch.tables)}
        first = row.segments[0].first
        found.append(cut_for(segments, slots, prepared.num_bands, first, row.length, size, device))
        at += launch.num_segments
    return tuple(found)


def cut_for(
    segments: Sequence[Segment],
    slots: dict[KeyTable, int],
    num_bands: int,
    first: int,
    num_keys: int,
    size: int,
    device: torch.device,
) -> KeyTiles:
    """Tiles of so many keys for the queries of some segments.

    slots: of the tables. num_bands: of the whole call. first: the call's first query. Every tile has a run, if only
    one whose entry has no queries.
    """
    begins = torch.arange(0, num_keys, size)
    parts = [
        _entries(segment, band, begins, size, slots[band.table], number, segment.first - first)
        for segment in segments
        for number, band in numbered(segment, num_bands)
    ]
    unseen = torch.ones(len(begins), dtype=torch.bool)
    for part in parts:
        unseen[part[:, 0]] = False
    parts.append(torch.zeros(int(unseen.sum()), 2 + _ENTRY_COLUMNS, dtype=torch.int64))
    parts[-1][:, 0] = torch.nonzero(unseen).flatten()
    entries = torch.cat(parts)
    tile, slot = entries[:, 0], entries[:, 1]
    entries = entries[torch.argsort(tile * len(slots) + slot, stable=True)]
    of_run, counts = torch.unique_consecutive(entries[:, :2], dim=0, return_counts=True)
    ends = counts.cumsum(0)
    runs = _records(Run._fields, slot=of_run[:, 1], first=ends - counts, end=ends)
    first_runs = torch.searchsorted(of_run[:, 0].contiguous(), torch.arange(len(begins) + 1))
    first_runs, runs, entries = (x.to(torch.int32).contiguous().to(device) for x in (first_runs, runs, entries[:, 2:]))
    return KeyTiles(first_runs, runs, entries, several=len(runs) > len(begins))


def _entries(segment: Segment, band: Band, begins: Tensor, size: int, slot: int, number: int, offset: int) -> Tensor:
    """(entries, 2 + columns): a tile, a slot, and an `Entry`, where a query may see the tile.

    begins: (tiles,), first keys. offset: what makes the segment's queries those of the call.
    """
    start, stop, ends = band.start.contiguous(), band.stop.contiguous(), begins + size
    found = _records(
        ("tile", "slot", *Entry._fields),
        tile=torch.arange(len(begins)),
        slot=torch.full_like(begins, slot),
        band=torch.full_like(begins, number),
        low=torch.searchsorted(stop, begins, right=True) + offset,
        low_whole=torch.searchsorted(stop, ends) + offset,
        high_whole=torch.searchsorted(start, begins, right=True) + offset,
        high=torch.searchsorted(start, ends) + offset,
    )
    return found[found[:, 2 + _ENTRY.low] < found[:, 2 + _ENTRY.high]]


def _records(fields: Sequence[str], **columns: Tensor) -> Tensor:
    """Records with one number of each column, in the order of the fields."""
    return torch.stack([columns[name] for name in fields], dim=1)
