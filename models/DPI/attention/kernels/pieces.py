"""A decoding step cut into pieces of work, one for each program of a key head: what the kernel reads of a plan.

`Piece` names the columns of a record for the host, which writes records, and for the kernel, which loads them.
"""

import bisect
import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.DPI.attention import cards
from models.DPI.attention.bands import Plan
from models.DPI.attention.cards import Card
from models.DPI.attention.kernels.launching import power_of_2
from models.DPI.attention.kernels.noise import period_of
from models.DPI.attention.noise import POOL_SIZE
from models.DPI.attention.prepared import PreparedStep, StepShape
from models.DPI.attention.tables import KeyPositions

# Keys of a decoding tile.
DECODE_KEYS = 64
_DECODE_WARPS = 4
# Tiles of one program at most: its query rotates on by as many roundings, which is 3e-5 after 512.
MOST_TILES = 512
# What cutting a row costs, in tiles of time. Programs share the memory's speed: of the time that each takes for a tile
# beside all others, what one takes at least.
_ALONE = 0.83
# Where every key's table is read, one program waits longer for it than two that wait by turns.
_ALONE_WITH_TABLES = 1.4
# A second program on each multiprocessor: tables to read, parts to merge. Each of its further turns.
_SECOND_PROGRAM = 2.3
_TURN = 2.0
# Programs of one turn end at different times: each tile of a piece beyond so many costs so much of a tile more.
_EVEN_TILES = 96
_SPREAD = 1 / 8
_MOST_TURNS = 16


class Piece(NamedTuple):
    """Tiles low ... high - 1 of one of a row's bands, for one program.

    left: the row's first key. query: the query's index. start, stop: the band's keys start ... stop - 1. step: keys of
    a tile. cos, sin: addresses of the band's key tables. period: its noise period, -1 for none. band: its number.
    """

    left: int
    query: int
    low: int
    high: int
    start: int
    stop: int
    step: int
    cos: int
    sin: int
    period: int
    band: int


# Default arguments of the loaders: unlike a module's names, Triton does not compare them at every launch.
_AT = Piece(*range(len(Piece._fields)))
_COLUMNS = len(_AT)


@triton.jit
def load_piece(
    pieces,
    number,
    COLUMNS: tl.constexpr = _COLUMNS,
    LEFT: tl.constexpr = _AT.left,
    QUERY: tl.constexpr = _AT.query,
    LOW: tl.constexpr = _AT.low,
    HIGH: tl.constexpr = _AT.high,
    START: tl.constexpr = _AT.start,
    STOP: tl.constexpr = _AT.stop,
    STEP: tl.constexpr = _AT.step,
    COS: tl.constexpr = _AT.cos,
    SIN: tl.constexpr = _AT.sin,
    PERIOD: tl.constexpr = _AT.period,
    BAND: tl.constexpr = _AT.band,
):
    """The `Piece` of record `number`: int32 numbers, and pointers to fp32 tables."""
    record = pieces + number * COLUMNS
    return Piece(
        left=tl.load(record + LEFT).to(tl.int32),
        query=tl.load(record + QUERY).to(tl.int32),
        low=tl.load(record + LOW).to(tl.int32),
        high=tl.load(record + HIGH).to(tl.int32),
        start=tl.load(record + START).to(tl.int32),
        stop=tl.load(record + STOP).to(tl.int32),
        step=tl.load(record + STEP).to(tl.int32),
        period=tl.load(record + PERIOD).to(tl.int32),
        cos=tl.multiple_of(tl.load(record + COS).to(tl.pointer_type(tl.float32)), 16),
        sin=tl.multiple_of(tl.load(record + SIN).to(tl.pointer_type(tl.float32)), 16),
        band=tl.load(record + BAND).to(tl.int32),
    )


def prepare_step(
    plan: Plan, shape: StepShape, *, previous: PreparedStep | None = None, multiple: int = 1
) -> PreparedStep:
    """What the kernel reads of the last query of each of the plan's rows.

    previous: of another token; its tensors are written anew and returned where their shapes and constants fit.
    multiple: of it is the number of programs for each key head, so that few tokens need another number.
    """
    rows, numbers, tables, relative, noisy = _lay_out(plan, shape)
    splits = -(-max(map(len, rows)) // multiple) * multiple
    if previous is not None:
        splits = max(splits, previous.pieces.shape[1])
    options = _options(shape, 2 * tables[0][0].shape[1], numbers.shape[1], relative, noisy)
    data = _write(rows, splits, numbers, tables[0], pinned=shape.device.type == "cuda")
    if (
        previous is not None
        and (previous.shape, previous.pieces.shape[1]) == (shape, splits)
        and previous.options == options
    ):
        previous.data.copy_(data, non_blocking=True)
        return replace(previous, key_tables=tables)
    on_device = data.to(shape.device, non_blocking=True)
    planes = shape.batch * shape.kv_heads
    parts = planes * splits * options["BLOCK_MEMBERS"]
    size = shape.batch * splits * _COLUMNS
    return PreparedStep(
        shape=shape,
        data=on_device,
        pieces=on_device[:size].view(shape.batch, splits, _COLUMNS),
        numbers=on_device[_behind(size) :].view(torch.float32)[: numbers.numel()].view(numbers.shape),
        parts=torch.empty(parts * options["BLOCK_D"], dtype=torch.float32, device=shape.device),
        log_totals=torch.empty(parts, dtype=torch.float32, device=shape.device),
        arrivals=torch.zeros(planes, dtype=torch.int32, device=shape.device),
        options=options,
        key_tables=tables,
    )


def _write(
    rows: list[list[list[int]]], splits: int, numbers: Tensor, tables: tuple[Tensor, Tensor], *, pinned: bool
) -> Tensor:
    """Records, `splits` for each row, and numbers, one behind the other, int64: one copy takes them to the device.

    tables: those that idle programs read.
    """
    cos, sin = (table.data_ptr() for table in tables)
    idle = Piece(left=0, query=0, low=0, high=0, start=0, stop=0, step=1, cos=cos, sin=sin, period=-1, band=0)
    flat = [column for row in rows for record in row + [[*idle]] * (splits - len(row)) for column in record]
    behind = _behind(len(flat))
    data = torch.empty(behind + -(-numbers.numel() // 2), dtype=torch.int64, pin_memory=pinned)
    data[: len(flat)] = torch.tensor(flat)  # flat, because nested lists take ten times as long
    data[behind:].view(torch.float32)[: numbers.numel()] = numbers.view(-1)
    return data


def _options(shape: StepShape, rotary_dim: int, columns: int, relative: bool, noisy: bool) -> dict[str, int]:
    """The kernel's constants. columns: of `PreparedStep.numbers`."""
    card = cards.card_of(shape.device)
    dependent = _starts_early(shape.device, card)
    group, block_d = shape.heads // shape.kv_heads, power_of_2(shape.head_dim)
    block_members = power_of_2(group)
    block_group = max(8, block_members)
    half, rest = rotary_dim // 2, shape.head_dim - rotary_dim
    block_half, block_rest = _product_width(half), _product_width(rest) if rest else 0
    options = {
        "GROUP": group,
        "BLOCK_GROUP": block_group,
        "BANDS": columns // (1 + rotary_dim),
        "NOISY": noisy,
        "HALF": half,
        "BLOCK_HALF": block_half,
        "REST": rest,
        "BLOCK_REST": block_rest,
        "BLOCK_D": block_d,
        "BN": DECODE_KEYS,
        "WARPS": _DECODE_WARPS,
        "RELATIVE": relative,
        "POOL": POOL_SIZE,
        "BLOCK_MEMBERS": block_members,
        "STAGES": _stages(2 * block_half + block_rest + block_d, block_half, block_group, relative, card),
        "DEPENDENT": dependent,
        "num_warps": _DECODE_WARPS,
        "enable_fp_fusion": True,
        "maxnreg": 255,  # the assembler, left to choose, spills all but 32 of heads of 256
    }
    if dependent:
        options["launch_pdl"] = True
    return options


def _lay_out(
    plan: Plan, shape: StepShape
) -> tuple[list[list[list[int]]], Tensor, list[tuple[Tensor, Tensor]], bool, bool]:
    """Records and numbers of the batch's rows, key tables, whether bands are relative, and whether there is noise."""
    segments = [row.segments[-1] for row in plan.rows]
    num_bands = max(len(segment.bands) for segment in segments)
    relative = all(cycle_step_of(band.keys) for segment in segments for band in segment.bands)
    half = segments[0].bands[0].frequencies.rotary_dim // 2
    numbers = torch.zeros(shape.batch, 1 + num_bands * (1 + 2 * half))
    records: list[list[list[int]]] = [[] for _ in range(shape.batch)]
    key_tables = []
    noisy = False
    for row, segment in zip(plan.rows, segments, strict=True):
        whole, tiles = [], []  # each band as one piece, and its tiles
        values = [torch.zeros(1) if segment.noise_std is None else segment.noise_std]
        for number, band in enumerate(segment.bands):
            start, stop = int(band.start[0]), int(band.stop[0])
            step = cycle_step_of(band.keys) if relative else DECODE_KEYS
            cos, sin = band.key_tables(max(stop, DECODE_KEYS + 1), shape.device)
            key_tables.append((cos, sin))
            period = period_of(segment, band)
            noisy = noisy or period is not None
            tiles.append((start // step, -(-stop // step)) if start < stop else (0, 0))
            piece = Piece(
                left=row.left,
                query=segment.first,
                low=tiles[-1][0],
                high=tiles[-1][1],
                start=start,
                stop=stop,
                step=step,
                cos=cos.data_ptr(),
                sin=sin.data_ptr(),
                period=-1 if period is None else period,
                band=number,
            )
            whole.append([*piece])
            values.append(torch.as_tensor(band.logit_scale, dtype=torch.float32).reshape(1))
            values += [table[0] for table in band.query_tables(torch.device("cpu"))]
        per_head = count_multiprocessors(shape.device) / (shape.batch * shape.kv_heads)
        shares = _best_shares(tuple(tiles), per_head, relative)
        of_row = [_cut(whole[b], low, high) for b, low, high in shares]
        row_numbers = torch.cat(values)
        for member in row.rows:
            records[member] = of_row
            numbers[member, : len(row_numbers)] = row_numbers
    return records, numbers, key_tables, relative, noisy and plan.noise is not None


def _behind(size: int) -> int:
    """Where in a step's data the numbers begin, behind so many columns: at 16 bytes, or Triton would compile twice."""
    return size + size % 2


def _starts_early(device: torch.device, card: Card) -> bool:
    """Whether a launch may begin before the kernel ahead has ended; Triton's interpreter does not know it."""
    return device.type == "cuda" and card.has_copy_engine


def _product_width(components: int) -> int:
    """Components of a block for a tensor core's product, which has 16 at least."""
    return max(16, power_of_2(components))


def _stages(width: int, block_half: int, block_group: int, relative: bool, card: Card) -> int:
    """Tiles in flight that shared memory holds.

    width: components of a key and its value that are read. Without a copy engine tables are copied ahead like keys, one
    tile fewer than the stages is held, and both halves of every warp's queries lie beside them.
    """
    if card.has_copy_engine:
        return 3 if relative and width <= 256 else 2
    tile = DECODE_KEYS * (2 * width + (0 if relative else 8 * block_half))
    queries = 4 * _DECODE_WARPS * block_half * block_group
    if relative and 2 * tile + queries <= card.shared_memory // 2:  # two programs on a multiprocessor
        return 3
    return 2 if tile + queries <= card.shared_memory else 1


def _cut(record: list[int], low: int, high: int) -> list[int]:
    """The record of a piece, with other tiles. Not by `_replace`, which takes ten times as long, for every token."""
    record = record.copy()
    record[_AT.low], record[_AT.high] = low, high
    return record


@functools.lru_cache(maxsize=1024)  # the same for tens of tokens; rows of a batch may all differ
def _best_shares(
    tiles: tuple[tuple[int, int], ...], multiprocessors: float, relative: bool
) -> tuple[tuple[int, int, int], ...]:
    """Bands' tiles cut for one program per multiprocessor, of so many for each key head, or for two in some turns."""
    even = sum(high - low for low, high in tiles) / multiprocessors
    best: tuple[tuple[int, int, int], ...] = ()
    least = float("inf")
    for programs, turns in ((1, 1), *((2, turns) for turns in range(1, _MOST_TURNS + 1))):
        room = programs * multiprocessors
        shares = tuple(_shares(tiles, int(turns * room)))
        longest = max((high - low for _, low, high in shares), default=0)
        needed = max(1, math.ceil(len(shares) / room))
        if needed > turns and best:  # a piece for each band at least, of 512 tiles at most: no other cut than before
            continue
        alone = _ALONE if relative or programs == 2 else _ALONE_WITH_TABLES
        cost = max(even, alone * programs * needed * longest)
        if programs == 2 or needed > 1:
            cost += _SECOND_PROGRAM + _TURN * (needed - 1) + _SPREAD * max(0, longest - _EVEN_TILES)
        if cost < least:
            best, least = shares, cost
        if programs == 2 and longest <= _EVEN_TILES:
            break
    return best


def _shares(tiles: Sequence[tuple[int, int]], most: int) -> list[tuple[int, int, int]]:
    """Bands' tiles low ... high - 1 cut into at most `most` equal pieces if there are so many, at least one per band.

    A piece has two tiles or more, for the sake of the merge, and at most 512. Returns (band, low, high) of each.
    """
    counts = [high - low for low, high in tiles]
    least = max(2, -(-sum(counts) // max(most, 1)))
    shares = range(least, max(least, *counts) + 1)  # the longer, the fewer pieces
    at = bisect.bisect_left(shares, -most, hi=len(shares) - 1, key=lambda share: -sum(-(-n // share) for n in counts))
    share = min(shares[at], MOST_TILES)
    return [(b, at, min(at + share, high)) for b, (low, high) in enumerate(tiles) for at in range(low, high, share)]


def cycle_step_of(keys: KeyPositions) -> int:
    """Keys of a tile that begins at a multiple of the cycle, so that its positions are p(first key) plus those of
    the first tile; 0 where there is no such tile."""
    cycle = keys.cycle
    return 0 if cycle == 0 or cycle > DECODE_KEYS else DECODE_KEYS // cycle * cycle


@functools.lru_cache
def count_multiprocessors(device: torch.device) -> int:
    """Of a GPU; elsewhere a few, for Triton's interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
