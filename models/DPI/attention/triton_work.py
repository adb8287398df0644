"""What the fused kernels read of a plan: made once a forward pass and the same for all its layers.

Tiles and pieces of work, boundaries and tables of queries, each in one tensor on the device.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.DPI.attention.bands import EVERY_KEY, Band, Plan, Segment
from models.DPI.attention.noise import POOL_SIZE
from models.DPI.attention.tables import KeyPositions

# Bytes of turned keys held at a time: segments share a launch while their tables fit.
_KEY_BYTES = 1 << 29
# Keys of a decoding tile.
DECODE_KEYS = 64
_DECODE_WARPS = 4
# Tiles of one program at most: its query turns on by as many roundings, which is 3e-5 after 512.
_MOST_TILES = 512
# What a second program on each multiprocessor costs, in tiles: tables to read, parts to merge.
_SECOND_PROGRAM = 1.5


@dataclass(frozen=True)
class Tiling:
    """Queries and keys of a tile, warps, and tiles of keys in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


def tiling(head_dim: int, num_queries: int, noisy: bool) -> Tiling:
    """Measured on an H100, see benchmarks/RESULTS.md."""
    if noisy:  # two small programs hide each other's reads of the pool
        return Tiling(64, 64 if head_dim <= 128 else 32, 4, 2)
    if head_dim > 128:
        return Tiling(64, 64, 4, 2) if num_queries <= 64 else Tiling(128, 64, 8, 2)
    return Tiling(64, 64, 4, 3) if num_queries <= 64 else Tiling(128, 128, 8, 3)


@dataclass(frozen=True)
class _Launch:
    """tables: for each slot its positions and the keys first ... last - 1 that need them; tiles as the kernel's."""

    tables: tuple[tuple[Band, int, int], ...]
    tiles: Tensor


@dataclass(frozen=True)
class Prepared:
    """What the prefill kernel reads, the same for all layers. noisy: a bit for each band."""

    launches: tuple[_Launch, ...]
    num_slots: int
    num_bands: int
    bounds: Tensor
    cos: Tensor
    sin: Tensor
    gates: Tensor
    std: Tensor
    noisy: int


def prepare(segments: Sequence[Segment], key_bytes: int, tile: Tiling, device: torch.device) -> Prepared:
    """key_bytes: of the keys turned by one table."""
    num_bands = max(len(segment.bands) for segment in segments)
    first = segments[0].first
    total = segments[-1].last - first
    half = segments[0].bands[0].frequencies.rotary_dim // 2
    bounds = torch.zeros(2, num_bands, total, dtype=torch.int32)
    cos, sin = (torch.zeros(num_bands, total, half, device=device) for _ in range(2))
    std = torch.zeros(total)
    noisy = 0
    periods: list[int | None] = [None]
    for segment in segments:
        at = slice(segment.first - first, segment.last - first)
        if segment.noise_std is not None:
            std[at] = segment.noise_std
        for b, band in _numbered(segment, num_bands):
            bounds[0, b, at], bounds[1, b, at] = band.start, band.stop
            cos[b, at], sin[b, at] = band.query_tables(device)
            period = _period(segment, band)
            noisy |= (period is not None) << b
            if period not in periods:
                periods.append(period)
    groups = list(_groups(segments, max(1, _KEY_BYTES // key_bytes)))
    launches = tuple(_launch(group, first, num_bands, periods, tile, device) for group in groups)
    gates = _gates(periods, device)
    num_slots = max(len(launch.tables) for launch in launches)
    return Prepared(launches, num_slots, num_bands, bounds.to(device), cos, sin, gates, std.to(device), noisy)


def _numbered(segment: Segment, num_bands: int) -> Iterator[tuple[int, Band]]:
    """Bands with their numbers; a segment with fewer than others has the last ones, where no noise is."""
    return enumerate(segment.bands, start=num_bands - len(segment.bands))


def _period(segment: Segment, band: Band) -> int | None:
    return None if segment.noise_std is None else band.noise_period


def _table(band: Band) -> tuple[int, KeyPositions]:
    return id(band.frequencies), band.keys


def _groups(segments: Sequence[Segment], max_tables: int) -> Iterator[list[Segment]]:
    """Runs of segments that need at most so many tables, or a single segment."""
    group: list[Segment] = []
    tables: set[tuple[int, KeyPositions]] = set()
    for segment in segments:
        own = {_table(band) for band in segment.bands}
        if group and len(tables | own) > max_tables:
            yield group
            group, tables = [], set()
        group.append(segment)
        tables |= own
    yield group


def _launch(
    group: list[Segment], first: int, num_bands: int, periods: list[int | None], tile: Tiling, device: torch.device
) -> _Launch:
    slots: dict[tuple[int, KeyPositions], tuple[int, Band, int, int]] = {}
    tiles = []
    for segment in group:
        columns = [0, 0] * num_bands
        for b, band in _numbered(segment, num_bands):
            low, high = int(band.start[0]), int(band.stop[-1])
            number, known, seen_low, seen_high = slots.get(_table(band), (len(slots), band, low, high))
            slots[_table(band)] = (number, known, min(low, seen_low), max(high, seen_high))
            columns[2 * b] = number
            columns[2 * b + 1] = periods.index(_period(segment, band))
        begin, end = segment.first - first, segment.last - first
        # Tiles begin at multiples of 8 queries, as blocks of noise do.
        for at in range(begin - segment.first % 8, end, tile.queries):
            tiles.append([max(at, begin), min(at + tile.queries, end), *columns])
    tiles.reverse()  # later queries see more keys: the long tiles go first
    tables = tuple((band, low, high) for _, band, low, high in slots.values())
    return _Launch(tables, torch.tensor(tiles, dtype=torch.int32).to(device))


def _gates(periods: list[int | None], device: torch.device) -> Tensor:
    """(periods, 2) int64: the period, and a bit for each of 64 keys, set where a key gets no noise."""
    rows = []
    for period in periods:
        if period is None or period == EVERY_KEY:
            rows.append([1, -1 if period is None else 0])
        else:
            pattern = sum(1 << key for key in range(0, 64, period))
            rows.append([period, pattern - (1 << 64) if pattern >> 63 else pattern])
    return torch.tensor(rows).to(device)


@dataclass(frozen=True)
class PreparedOne:
    """What the decoding kernel reads, the same for all layers, which run one after another.

    parts, log_totals: the programs' results before they are merged. arrivals: zeros, and zeros again after each launch.
    options: the kernel's constants. key_tables keeps the addresses in `work` alive.
    """

    work: Tensor
    numbers: Tensor
    parts: Tensor
    log_totals: Tensor
    arrivals: Tensor
    block_d: int
    block_half: int
    noisy: bool
    options: dict[str, int]
    key_tables: list[tuple[Tensor, Tensor]]


def prepare_one(
    plan: Plan,
    batch: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    device: torch.device,
    *,
    previous: PreparedOne | None = None,
    multiple: int = 1,
) -> PreparedOne:
    """previous: of another token; its tensors are written anew and returned where their shapes and constants fit.
    multiple: of it is the number of programs for each key head, so that few tokens need another number.
    """
    lines, numbers, tables, relative, noisy = _lay_out(plan, batch, kv_heads, device)
    splits = -(-max(map(len, lines)) // multiple) * multiple
    if previous is not None:
        splits = max(splits, previous.work.shape[1])
    idle = [0, 0, 0, 0, 0, 0, 1, tables[0][0].data_ptr(), tables[0][1].data_ptr(), -1, 0]
    flat = [number for line in lines for piece in line + [idle] * (splits - len(line)) for number in piece]
    work = torch.tensor(flat).view(batch, splits, len(idle))  # flat, because nested lists take ten times as long
    half = tables[0][0].shape[1]
    planes, group, block_d = batch * kv_heads, heads // kv_heads, power_of_2(head_dim)
    block_members = power_of_2(group)
    options = {
        "GROUP": group,
        "BLOCK_GROUP": max(8, block_members),
        "BANDS": numbers.shape[1] // (2 * half),
        "NOISY": noisy,
        "HALF": half,
        "BLOCK_HALF": power_of_2(half),
        "BLOCK_D": block_d,
        "BN": DECODE_KEYS,
        "WARPS": _DECODE_WARPS,
        "RELATIVE": relative,
        "POOL": POOL_SIZE,
        "BLOCK_MEMBERS": block_members,
        "BLOCK_SPLITS": power_of_2(splits),
        "STAGES": 3 if relative and head_dim <= 128 else 2,  # what shared memory holds
        "DEPENDENT": device.type == "cuda",
        "num_warps": _DECODE_WARPS,
        "enable_fp_fusion": True,
        "maxnreg": 255,  # the assembler, left to choose, spills all but 32 of heads of 256
    }
    if device.type == "cuda":  # Triton's interpreter does not know it
        options["launch_pdl"] = True
    if previous is not None and previous.options == options and previous.work.shape == work.shape:
        previous.work.copy_(work)
        previous.numbers.copy_(numbers)
        return replace(previous, key_tables=tables)
    return PreparedOne(
        work=work.to(device),
        numbers=numbers.to(device),
        parts=torch.empty(planes * splits * block_members * block_d, dtype=torch.float32, device=device),
        log_totals=torch.empty(planes * splits * block_members, dtype=torch.float32, device=device),
        arrivals=torch.zeros(planes, dtype=torch.int32, device=device),
        block_d=block_d,
        block_half=power_of_2(half),
        noisy=noisy,
        options=options,
        key_tables=tables,
    )


def _lay_out(
    plan: Plan, batch: int, kv_heads: int, device: torch.device
) -> tuple[list[list[list[int]]], Tensor, list[tuple[Tensor, Tensor]], bool, bool]:
    """Pieces of work and numbers of each row of the batch, key tables, whether bands are relative, and noise at all."""
    segments = [row.segments[-1] for row in plan.rows]
    num_bands = max(len(segment.bands) for segment in segments)
    relative = all(_steps(band.keys) for segment in segments for band in segment.bands)
    half = segments[0].bands[0].frequencies.rotary_dim // 2
    numbers = torch.zeros(batch, 1 + 2 * num_bands * half)
    lines: list[list[list[int]]] = [[] for _ in range(batch)]
    key_tables = []
    noisy = False
    for row, segment in zip(plan.rows, segments, strict=True):
        bands, tiles = [], []
        values = [torch.zeros(1) if segment.noise_std is None else segment.noise_std]
        for number, band in enumerate(segment.bands):
            start, stop = int(band.start[0]), int(band.stop[0])
            step = _steps(band.keys) if relative else DECODE_KEYS
            cos, sin = band.key_tables(max(stop, DECODE_KEYS + 1), device)
            key_tables.append((cos, sin))
            period = _period(segment, band)
            noisy = noisy or period is not None
            addresses = [cos.data_ptr(), sin.data_ptr()]
            bands.append([start, stop, step, *addresses, -1 if period is None else period, number])
            tiles.append((start // step, -(-stop // step)) if start < stop else (0, 0))
            values += [table[0] for table in band.query_tables(torch.device("cpu"))]
        shares = _best_shares(tiles, _multiprocessors(device) / (batch * kv_heads))
        pieces = [[row.left, segment.first, low, high, *bands[b]] for b, low, high in shares]
        row_numbers = torch.cat(values)
        for member in row.rows:
            lines[member] = pieces
            numbers[member, : len(row_numbers)] = row_numbers
    return lines, numbers, key_tables, relative, noisy and plan.noise is not None


def _best_shares(tiles: list[tuple[int, int]], multiprocessors: float) -> list[tuple[int, int, int]]:
    """Bands' tiles cut for one or two programs a multiprocessor, of so many for each key head."""
    choices = {programs: _shares(tiles, int(programs * multiprocessors)) for programs in (1, 2)}

    def cost(programs: int) -> float:
        longest = max((high - low for _, low, high in choices[programs]), default=0)
        return programs * longest + _SECOND_PROGRAM * (programs - 1)

    return choices[min(choices, key=cost)]


def _shares(tiles: list[tuple[int, int]], most: int) -> list[tuple[int, int, int]]:
    """Bands' tiles low ... high - 1 cut into at most `most` equal pieces where there are so many, at least one a band.

    A piece has two tiles or more, for the sake of the merge, and at most 512. Returns (band, low, high) of each.
    """
    counts = [high - low for low, high in tiles]
    share = max(2, -(-sum(counts) // max(most, 1)))
    while share < max(counts) and sum(-(-count // share) for count in counts) > most:
        share += 1
    share = min(share, _MOST_TILES)
    return [(b, at, min(at + share, high)) for b, (low, high) in enumerate(tiles) for at in range(low, high, share)]


def _steps(keys: KeyPositions) -> int:
    """Keys of a tile that begins at a multiple of the stretch, so that its positions are p(first key) plus those of
    the first tile; 0 where there is no such tile."""
    return 0 if keys.period or keys.stretch > DECODE_KEYS else DECODE_KEYS // keys.stretch * keys.stretch


@functools.lru_cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def power_of_2(x: int) -> int:
    return 1 << (x - 1).bit_length()
