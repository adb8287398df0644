"""A decoding step of requests of any lengths, cut into pieces of work: what the kernel of `decode` reads of a batch.

`Piece` names the columns of a record for the host, which writes records, and for the kernel, which loads them. What
differs from step to step is in tensors that stay where they are, so that a recorded launch can compute later steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm_gali.gali import Band, Segment
from vllm_gali.gali_kernels import (
    DECODE_KEYS,
    MOST_TILES,
    count_multiprocessors,
    cycle_step_of,
    power_of_2,
)

WARPS = 4
# Room for records to begin with.
_RECORDS = 64
# Of the time of two programs on a multiprocessor, what one takes for its half. Measured on an H100: the threads of one
# ask for keys more slowly than memory gives them.
_ALONE = 0.7
# What a piece costs besides its tiles, in tiles: tables to read, parts to merge.
_EACH = 1.5
# Pieces for each program that runs at a time, at most.
_TURNS = 16
# Bands times sizes of pieces that are tried for a step: a quarter of a millisecond.
_TRIALS = 1 << 15


class Piece(NamedTuple):
    """Tiles low ... high - 1 of one of a request's bands, for one program of each key head.

    row: of the block table. token: the query among those of the step. table: the band's row of the query tables.
    start, stop: the band's keys start ... stop - 1. step: keys of a tile. cos, sin: addresses of the band's key tables.
    first, share: the number of the request's first piece, and how many it has; 0: an idle program. number: of this one
    among them.
    """

    row: int
    token: int
    table: int
    low: int
    high: int
    start: int
    stop: int
    step: int
    cos: int
    sin: int
    first: int
    share: int
    number: int


# Default arguments of the loader: unlike a module's names, Triton does not compare them at every launch.
_AT = Piece(*range(len(Piece._fields)))
_COLUMNS = len(_AT)


@triton.jit
def load_piece(
    records,
    number,
    COLUMNS: tl.constexpr = _COLUMNS,
    ROW: tl.constexpr = _AT.row,
    TOKEN: tl.constexpr = _AT.token,
    TABLE: tl.constexpr = _AT.table,
    LOW: tl.constexpr = _AT.low,
    HIGH: tl.constexpr = _AT.high,
    START: tl.constexpr = _AT.start,
    STOP: tl.constexpr = _AT.stop,
    STEP: tl.constexpr = _AT.step,
    COS: tl.constexpr = _AT.cos,
    SIN: tl.constexpr = _AT.sin,
    FIRST: tl.constexpr = _AT.first,
    SHARE: tl.constexpr = _AT.share,
    NUMBER: tl.constexpr = _AT.number,
):
    """The `Piece` of record `number`: int32 numbers, and pointers to fp32 tables."""
    record = records + number * COLUMNS
    return Piece(
        row=tl.load(record + ROW).to(tl.int32),
        token=tl.load(record + TOKEN).to(tl.int32),
        table=tl.load(record + TABLE).to(tl.int32),
        low=tl.load(record + LOW).to(tl.int32),
        high=tl.load(record + HIGH).to(tl.int32),
        start=tl.load(record + START).to(tl.int32),
        stop=tl.load(record + STOP).to(tl.int32),
        step=tl.load(record + STEP).to(tl.int32),
        cos=tl.multiple_of(tl.load(record + COS).to(tl.pointer_type(tl.float32)), 16),
        sin=tl.multiple_of(tl.load(record + SIN).to(tl.pointer_type(tl.float32)), 16),
        first=tl.load(record + FIRST).to(tl.int32),
        share=tl.load(record + SHARE).to(tl.int32),
        number=tl.load(record + NUMBER).to(tl.int32),
    )


@dataclass
class Room:
    """Tensors that are used step after step, and stay where they are while they are large enough.

    written: rows of each that the last step wrote. step: the last one.
    """

    device: torch.device
    tensors: dict[str, Tensor] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)
    step: "Step | None" = None

    def of(self, name: str, rows: int, rest: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The tensor of this name, (rows or more, *rest); zeros where it is new."""
        found = self.tensors.get(name)
        if found is None or found.shape[0] < rows:
            room = power_of_2(rows) if rows else 0
            found = self.tensors[name] = torch.zeros(room, *rest, dtype=dtype, device=self.device)
            self.written[name] = 0
        return found

    def fill(self, name: str, values: Tensor, least: int) -> Tensor:
        """The tensor of this name with these values, from the CPU, and zeros behind them."""
        rows = values.shape[0]
        target = self.of(name, max(rows, least), tuple(values.shape[1:]), values.dtype)
        stale = self.written[name]
        if stale > rows:
            values = torch.cat((values, values.new_zeros(stale - rows, *values.shape[1:])))
        copy(values, target[: values.shape[0]])
        self.written[name] = rows
        return target


def copy(values: Tensor, target: Tensor) -> None:
    """Values of the CPU to a device, without waiting for it."""
    if target.is_cuda:
        # New pinned memory for each copy: PyTorch gives none out again before the copy is done.
        target.copy_(values.pin_memory(), non_blocking=True)
    else:
        target.copy_(values)


class Pieces(NamedTuple):
    """Those whose tiles begin at multiples of their band's cycle, or all others. records: (used or more, columns)."""

    records: Tensor
    used: int
    relative: bool


@dataclass(frozen=True, eq=False)
class Step:
    """What the kernel reads, layer after layer.

    queries: (bands, 2, D/2) fp32, each band's cosines and sines of its query. parts, log_totals: results of programs
    before they are merged. arrivals: zeros, and zeros again after each step. options: the kernel's constants.
    key_tables keeps the addresses in the records alive. room: where the tensors are, until the next step's.
    """

    launches: tuple[Pieces, ...]
    block_table: Tensor
    queries: Tensor
    parts: Tensor
    log_totals: Tensor
    arrivals: Tensor
    options: dict[str, int]
    key_tables: list[Tensor]
    room: Room = field(repr=False)

    @property
    def signature(self) -> tuple[object, ...]:
        """A CUDA graph recorded for one step computes every later one of the same signature."""
        tensors = (self.block_table, self.queries, self.parts, self.log_totals, self.arrivals)
        records = [pieces.records for pieces in self.launches]
        return *((x.data_ptr(), tuple(x.shape)) for x in (*tensors, *records)), *self.options.items()


def prepare(
    requests: Sequence[tuple[int, int, Segment]], block_table: Tensor, shape: tuple[int, int, int], room: Room
) -> Step:
    """What one token of each request needs.

    requests: of each its row of the block table, its query among those of the step, and its bands. shape: query heads,
    key heads, head_dim. room: of the steps before; its tensors are written anew.
    """
    heads, kv_heads, head_dim = shape
    device = block_table.device
    bands, queries, key_tables = _bands_of(requests, device)
    pieces = _cut(bands, count_multiprocessors(device) / kv_heads)
    records, relative = pieces[:, :-1], pieces[:, -1] == 1
    by_size = (records[:, _AT.low] - records[:, _AT.high]).argsort(stable=True)  # programs begin in this order
    records, relative = records[by_size], relative[by_size]
    group, half = heads // kv_heads, head_dim // 2
    block_d, members = power_of_2(head_dim), power_of_2(group)
    launches = []
    for kind in (True, False):
        own = records[relative == kind]
        name = f"records, {'relative' if kind else 'others'}"
        # No room for the others before there are any: a recorded launch would run for nothing.
        launches.append(Pieces(room.fill(name, own, _RECORDS if kind else 0), len(own), kind))
    parts = max(len(records), _RECORDS) * kv_heads
    options = {
        "GROUP": group,
        "BLOCK_GROUP": max(8, members),
        "HALF": half,
        "BLOCK_HALF": power_of_2(half),
        "BLOCK_D": block_d,
        "BN": DECODE_KEYS,
        "WARPS": WARPS,
        "BLOCK_MEMBERS": members,
    }
    room.step = Step(
        launches=tuple(launches),
        block_table=block_table,
        queries=room.fill("queries", queries, _RECORDS),
        parts=room.of("parts", parts, (members * block_d,), torch.float32),
        log_totals=room.of("log_totals", parts, (members,), torch.float32),
        arrivals=room.of("arrivals", block_table.shape[0], (kv_heads,), torch.int32),
        options=options,
        key_tables=key_tables,
        room=room,
    )
    return room.step


def _bands_of(
    requests: Sequence[tuple[int, int, Segment]], device: torch.device
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Each band as one piece, uncut, and whether its tiles are relative, (bands, columns + 1); queries; key tables."""
    rows: list[list[int]] = []
    bands: list[Band] = []
    tables: list[Tensor] = []
    for row, token, segment in requests:
        seen = [band for band in segment.bands if band.start[0] < band.stop[0]]
        for band in seen or segment.bands[:1]:  # a query that sees no key gets zeros, from a piece without tiles
            start, stop = int(band.start[0]), int(band.stop[0])
            cycle_step = cycle_step_of(band.keys)
            step = cycle_step or DECODE_KEYS
            cos, sin = band.key_tables(max(stop, DECODE_KEYS + 1), device)
            piece = Piece(
                row=row,
                token=token,
                table=len(rows),
                low=start // step,
                high=-(-stop // step) if start < stop else start // step,
                start=start,
                stop=stop,
                step=step,
                cos=cos.data_ptr(),
                sin=sin.data_ptr(),
                first=0,
                share=0,
                number=0,
            )
            rows.append([*piece, int(cycle_step > 0)])
            bands.append(band)
            tables += [cos, sin]
    flat = [column for row in rows for column in row]  # flat, because nested lists take ten times as long
    return torch.tensor(flat).view(len(rows), _COLUMNS + 1), _queries_of(bands), tables


def _queries_of(bands: Sequence[Band]) -> Tensor:
    """Cosines and sines of the bands' only queries, (bands, 2, D/2) fp32, as `Band.query_tables`, all at once."""
    half = bands[0].frequencies.rotary_dim // 2
    positions = torch.stack([band.query_positions.reshape(-1).expand(half) for band in bands])
    scales = torch.tensor([float(band.query_scale * band.logit_scale) for band in bands], dtype=torch.float64)
    found = torch.empty(len(bands), 2, half)
    for frequencies in {band.frequencies for band in bands}:
        at = torch.tensor([number for number, band in enumerate(bands) if band.frequencies is frequencies])
        cos, sin = frequencies.tables(positions[at], torch.device("cpu"), scale=scales[at])
        found[at] = torch.stack((cos, sin), dim=1)
    return found


def _cut(bands: Tensor, per_head: float) -> Tensor:
    """Bands as `_bands_of` gives them, cut into pieces. per_head: multiprocessors for each key head."""
    counts = bands[:, _AT.high] - bands[:, _AT.low]
    share = _best_share(counts, per_head)
    cuts = (-(-counts // share)).clamp(min=1)
    of_band = torch.repeat_interleave(torch.arange(len(bands)), cuts)
    number = torch.arange(len(of_band)) - (cuts.cumsum(0) - cuts)[of_band]  # of the piece in its band
    pieces = bands[of_band]
    pieces[:, _AT.low] += number * share
    pieces[:, _AT.high] = torch.minimum(pieces[:, _AT.low] + share, pieces[:, _AT.high])
    _, of_request, sizes = torch.unique_consecutive(pieces[:, _AT.row], return_inverse=True, return_counts=True)
    first = (sizes.cumsum(0) - sizes)[of_request]
    pieces[:, _AT.first], pieces[:, _AT.share] = first, sizes[of_request]
    pieces[:, _AT.number] = torch.arange(len(pieces)) - first
    return pieces


def _best_share(counts: Tensor, per_head: float) -> int:
    """Tiles of a piece at most, so that all pieces, of these bands, are done soonest.

    counts: (bands,) int64. per_head: multiprocessors for each key head. Each runs two programs at a time, which read
    what there is to read; one alone takes `_ALONE` of the time. A piece costs `_EACH` tiles besides its own.
    """
    longest = min(int(counts.max()), MOST_TILES)
    one, two = max(1, int(per_head)), max(1, int(2 * per_head))
    fewest = max(2, min(-(-int(counts.sum()) // (_TURNS * two)), longest))
    shares = torch.arange(fewest, max(fewest, longest) + 1)
    shares = shares[:: -(-len(shares) * len(counts) // _TRIALS)]
    rest = counts % shares[:, None]
    large, small = 2 * rest > shares[:, None], torch.where(2 * rest > shares[:, None], 0, rest)
    full = (counts // shares[:, None] + large).sum(1).double()
    pieces = full + (small > 0).sum(1)
    most = torch.where((counts >= shares[:, None]).any(1), shares, rest.amax(1)) + _EACH
    # The longest begin first: full pieces go in turns, small ones where the last turn leaves programs without one.
    turns = (full / two).ceil()
    left = small.sum(1) + _EACH * (small > 0).sum(1) - (turns * two - full) * most
    behind = torch.where(left > 0, left / two + small.amax(1) / 2, 0.0)
    together = torch.maximum(turns * most + behind, most)
    return int(shares[torch.where(pieces <= one, _ALONE * most, together).argmin()])
