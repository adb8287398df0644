"""Attention over bands in fused Triton kernels: one launch for many queries, one for a token to decode.

This module prepares what the kernels read. Nothing here or in the kernels touches logits in memory, and per token
and layer nothing of the cache's length happens outside them. Triton itself is imported when first needed.
"""

import contextlib
import functools
import importlib.util
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from models.DPI.attention import noise as noise_module
from models.DPI.attention.bands import EVERY_KEY, Band, Plan, Segment
from models.DPI.attention.noise import POOL_SIZE, Noise
from models.DPI.attention.tables import KeyPositions

HEAD_DIMS = (64, 80, 96, 128, 256)
DTYPES = (torch.bfloat16, torch.float16)
_LOG2E = math.log2(math.e)
_SHARED_MEMORY = 227 << 10
# Bytes of turned keys held at a time: segments share a launch while their tables fit.
_KEY_BYTES = 1 << 29
# Deviates that a block may read beyond the pool's end.
_POOL_MARGIN = 256


def obstacle(q: Tensor, plan: Plan) -> str | None:
    """Why these queries and bands cannot run here, or None."""
    if q.device.type != "cuda":
        return f"it needs a CUDA device, and the tensors are on {q.device.type}"
    if not _is_installed():
        return "the package triton is not installed"
    if _capability(q.device) < (9, 0):
        return "it needs a GPU of compute capability 9.0 (Hopper) or later"
    if _shared_memory(q.device) < _SHARED_MEMORY:
        return f"its tiles need {_SHARED_MEMORY >> 10} KiB of shared memory, more than this GPU has"
    if q.dtype not in DTYPES:
        return f"its tensor cores take bfloat16 and float16, and the queries are {q.dtype}"
    if q.shape[-1] not in HEAD_DIMS:
        return f"head_dim = {q.shape[-1]} is not one of {', '.join(map(str, HEAD_DIMS))}"
    band = plan.rows[0].segments[0].bands[0]
    if band.frequencies.rotary_dim != q.shape[-1]:
        return f"only {band.frequencies.rotary_dim} of head_dim = {q.shape[-1]} components are rotary"
    if plan.noise is not None and plan.noise.needs_row_statistics:
        return "noise with scale_mean = 1 or scale_max = 1 needs a row's statistics first"
    return None


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Sequence[Segment],
    *,
    scaling: float,
    noise: Noise | None = None,
    layer: int = 0,
    lse: Tensor | None = None,
) -> Tensor:
    """Attention of many queries of rows that share their padding.

    q: (B, H, T, D), the last T of N tokens; k, v: (B, Hkv, N, D), bf16 or fp16, un-rotated.
    segments: cover queries N - T ... N - 1. lse: (B, H, T) fp32, contiguous, receives the log-sum-exps.
    Returns (B, H, T, D), contiguous as (B, T, H, D).
    """
    batch, heads, num_queries, head_dim = q.shape
    kv_heads, num_keys = k.shape[1], k.shape[2]
    q, k, v = (x if _is_readable(x) else x.contiguous() for x in (q, k, v))
    out = torch.empty(batch, num_queries, heads, head_dim, dtype=q.dtype, device=q.device).transpose(1, 2)
    tile = _tiling(head_dim, num_queries, noise is not None)
    memo = segments[0].memo
    slot = ("prefill", q.device, batch * kv_heads, len(segments), tile.queries)
    if slot not in memo:
        memo[slot] = _prepare(segments, batch * kv_heads * num_keys * head_dim * k.element_size(), tile, q.device)
    prepared: _Prepared = memo[slot]
    noisy = prepared.noisy if noise is not None else 0
    block_d = _power_of_2(head_dim)
    turned_q = _turn_queries(q, prepared, scaling * _LOG2E)
    turned = k.new_empty(prepared.num_slots, batch, kv_heads, num_keys, head_dim)
    queries = _descriptor(turned_q.flatten(0, 2), [1, tile.queries, block_d])
    keys = _descriptor(turned.flatten(0, 2), [1, tile.keys, block_d])
    values = _descriptor(v, [1, 1, tile.keys, block_d])
    for launch in prepared.launches:
        _turn_keys(k, turned, launch.tables)
        with _on(q.device):
            _kernels().prefill[(launch.tiles.shape[0] * heads * batch,)](
                queries, keys, values, out, lse, prepared.bounds, launch.tiles,
                _pool(noise.kind, q.device) if noisy else None,
                prepared.gates if noisy else None,
                _head_keys(noise.seed, layer, heads, q.device) if noisy else None,
                prepared.std if noisy else None,
                out.stride(0), out.stride(1), out.stride(2),
                launch.tiles.shape[0], num_queries, heads, kv_heads, batch,
                num_keys - num_queries, *_noise_factors(noise),
                GROUP=heads // kv_heads, BANDS=prepared.num_bands, NOISY=noisy, HALF=head_dim // 2,
                BLOCK_D=block_d, BM=tile.queries, BN=tile.keys, POOL=POOL_SIZE, WARPS=tile.warps,
                STAGES=tile.stages, num_warps=tile.warps,
            )  # fmt: skip
    return out


def attend_one(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, *, scaling: float, layer: int = 0, lse: Tensor | None = None
) -> Tensor:
    """Attention of a decoding step: one query in every row of the batch, whatever its padding, in one launch.

    q: (B, H, 1, D); k, v: (B, Hkv, N, D) with the padding. lse: (B, H, 1) fp32, contiguous.
    Returns (B, H, 1, D); rows of the batch that the plan leaves out are 0.
    """
    batch, heads, _, head_dim = q.shape
    kv_heads = k.shape[1]
    memo = plan.rows[0].segments[0].memo
    slot = ("decode", q.device, heads)
    if slot not in memo:
        memo[slot] = _prepare_one(plan, batch, heads, kv_heads, head_dim, q.device)
    prepared: _PreparedOne = memo[slot]
    q, k, v = (x if _is_readable(x) else x.contiguous() for x in (q, k, v))
    noise = plan.noise if prepared.noisy else None
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    with _on(q.device):
        _kernels().decode[prepared.work.shape[1], batch * kv_heads](
            q, _descriptor(k, [1, 1, _DECODE_KEYS, prepared.block_half]),
            _descriptor(v, [1, 1, _DECODE_KEYS, prepared.block_d]), out, lse,
            prepared.work, prepared.numbers, prepared.parts, prepared.tops, prepared.arrivals,
            None if noise is None else _pool(noise.kind, q.device),
            None if noise is None else _head_keys(noise.seed, layer, heads, q.device),
            q.stride(0), q.stride(1), out.stride(0), out.stride(1),
            prepared.work.shape[1], kv_heads, scaling * _LOG2E, *_noise_factors(noise),
            **prepared.options,
        )  # fmt: skip
    return out


@dataclass(frozen=True)
class _Tiling:
    """Queries and keys of a tile, warps, and tiles of keys in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


def _tiling(head_dim: int, num_queries: int, noisy: bool) -> _Tiling:
    """Measured on an H100, see benchmarks/RESULTS.md."""
    if noisy:  # two small programs hide each other's reads of the pool
        return _Tiling(64, 64 if head_dim <= 128 else 32, 4, 2)
    if head_dim > 128:
        return _Tiling(64, 64, 4, 2) if num_queries <= 64 else _Tiling(128, 64, 8, 2)
    return _Tiling(64, 64, 4, 3) if num_queries <= 64 else _Tiling(128, 128, 8, 3)


@dataclass(frozen=True)
class _Launch:
    """tables: for each slot its positions and the keys first ... last - 1 that need them; tiles as the kernel's."""

    tables: tuple[tuple[Band, int, int], ...]
    tiles: Tensor


@dataclass(frozen=True)
class _Prepared:
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


def _prepare(segments: Sequence[Segment], key_bytes: int, tile: _Tiling, device: torch.device) -> _Prepared:
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
    return _Prepared(launches, num_slots, num_bands, bounds.to(device), cos, sin, gates, std.to(device), noisy)


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
    group: list[Segment], first: int, num_bands: int, periods: list[int | None], tile: _Tiling, device: torch.device
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
        tiles += [[at, min(at + tile.queries, end), *columns] for at in range(begin, end, tile.queries)]
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


def _turn_queries(q: Tensor, prepared: "_Prepared", factor: float) -> Tensor:
    """Queries by each band's table, (bands, B, H, T, D)."""
    turned = torch.empty(prepared.num_bands, *q.shape, dtype=q.dtype, device=q.device)
    for band in range(prepared.num_bands):
        _kernels().turn(q, prepared.cos[band], prepared.sin[band], turned[band], 0, q.shape[2], factor)
    return turned


def _turn_keys(k: Tensor, turned: Tensor, tables: tuple[tuple[Band, int, int], ...]) -> None:
    """Each table's keys to its slot of `turned` (slots, B, Hkv, N, D)."""
    for slot, (band, low, high) in enumerate(tables):
        if low < high:
            _kernels().turn(k, *band.key_tables(high, k.device), turned[slot], low, high)


# Keys of a decoding tile.
_DECODE_KEYS = 64
_DECODE_WARPS = 4


@dataclass(frozen=True)
class _PreparedOne:
    """What the decoding kernel reads, the same for all layers, which run one after another.

    parts, tops: the programs' results before they are merged. arrivals: zeros, and zeros again after each launch.
    options: the kernel's constants. key_tables keeps the addresses in `work` alive.
    """

    work: Tensor
    numbers: Tensor
    parts: Tensor
    tops: Tensor
    arrivals: Tensor
    block_d: int
    block_half: int
    noisy: bool
    options: dict[str, int]
    key_tables: list[tuple[Tensor, Tensor]]


def _prepare_one(
    plan: Plan, batch: int, heads: int, kv_heads: int, head_dim: int, device: torch.device
) -> _PreparedOne:
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
            step = _steps(band.keys) if relative else _DECODE_KEYS
            cos, sin = band.key_tables(max(stop, _DECODE_KEYS), device)
            key_tables.append((cos, sin))
            period = _period(segment, band)
            noisy = noisy or period is not None
            addresses = [cos.data_ptr(), sin.data_ptr()]
            bands.append([start, stop, step, *addresses, -1 if period is None else period, number])
            tiles.append((start // step, -(-stop // step)) if start < stop else (0, 0))
            values += [table[0] for table in band.query_tables(torch.device("cpu"))]
        count = sum(high - low for low, high in tiles) * batch * kv_heads
        programs = _multiprocessors(device) * (2 if count > _MANY_TILES else 1)
        pieces = _shares(tiles, programs // (batch * kv_heads))
        work = [[row.left, segment.first, low, high, *bands[b]] for b, low, high in pieces]
        values = torch.cat(values)
        for member in row.rows:
            lines[member] = work
            numbers[member, : len(values)] = values
    splits = max(map(len, lines))
    idle = [0, 0, 0, 0, 0, 0, 1, key_tables[0][0].data_ptr(), key_tables[0][1].data_ptr(), -1, 0]
    flat = [number for line in lines for piece in line + [idle] * (splits - len(line)) for number in piece]
    work = torch.tensor(flat).view(batch, splits, len(idle))  # flat, because nested lists take ten times as long
    planes, group, block_d = batch * kv_heads, heads // kv_heads, _power_of_2(head_dim)
    block_group, block_members = max(16, _power_of_2(group)), _power_of_2(group)
    options = {
        "GROUP": group,
        "BLOCK_GROUP": block_group,
        "BANDS": num_bands,
        "NOISY": noisy and plan.noise is not None,
        "HALF": half,
        "BLOCK_HALF": _power_of_2(half),
        "BLOCK_D": block_d,
        "BN": _DECODE_KEYS,
        "RELATIVE": relative,
        "POOL": POOL_SIZE,
        "BLOCK_MEMBERS": block_members,
        "BLOCK_SPLITS": max(1, min(_power_of_2(splits), _MERGED // (block_members * block_d))),
        "STAGES": 3 if relative and head_dim <= 128 else 2,  # what shared memory holds
        "num_warps": _DECODE_WARPS,
    }
    return _PreparedOne(
        work=work.to(device),
        numbers=numbers.to(device),
        parts=torch.empty(planes * splits * block_group * block_d, dtype=torch.float32, device=device),
        tops=torch.empty(planes * splits * block_group * 2, dtype=torch.float32, device=device),
        arrivals=torch.zeros(planes, dtype=torch.int32, device=device),
        block_d=block_d,
        block_half=_power_of_2(half),
        noisy=noisy and plan.noise is not None,
        options=options,
        key_tables=key_tables,
    )


def _shares(tiles: list[tuple[int, int]], most: int) -> list[tuple[int, int, int]]:
    """Bands' tiles low ... high - 1 cut into at most `most` equal pieces where there are so many, at least one a band.

    A piece has two tiles or more, for the sake of the merge. Returns (band, low, high) of each.
    """
    counts = [high - low for low, high in tiles]
    share = max(2, -(-sum(counts) // max(most, 1)))
    while share < max(counts) and sum(-(-count // share) for count in counts) > most:
        share += 1
    return [(b, at, min(at + share, high)) for b, (low, high) in enumerate(tiles) for at in range(low, high, share)]


def _steps(keys: KeyPositions) -> int:
    """Keys of a tile that begins at a multiple of the stretch, so that its positions are p(first key) plus those of
    the first tile; 0 where there is no such tile."""
    return 0 if keys.period or keys.stretch > _DECODE_KEYS else _DECODE_KEYS // keys.stretch * keys.stretch


# Tiles of a decoding step beyond which a multiprocessor gets two programs: the second hides latency, and costs parts to
# merge.
_MANY_TILES = 6144
# Numbers of the parts that the merge holds in registers at a time.
_MERGED = 1 << 14


@functools.lru_cache
def _is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@functools.lru_cache
def _shared_memory(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


@functools.lru_cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


@functools.lru_cache(maxsize=8)
def _pool(kind: str, device: torch.device) -> Tensor:
    """The noise's pool with its beginning repeated at the end, so that no block wraps."""
    values = noise_module.pool(kind, device)
    return torch.cat((values, values[:_POOL_MARGIN]))


@functools.lru_cache(maxsize=1024)
def _head_keys(seed: int, layer: int, heads: int, device: torch.device) -> Tensor:
    """(heads,) int32 with the bits of `noise.head_keys`."""
    keys = noise_module.head_keys(seed, layer, heads)
    return torch.where(keys >= 1 << 31, keys - (1 << 32), keys).to(torch.int32).to(device)


def _noise_factors(noise: Noise | None) -> tuple[float, float]:
    """In units of base-2 logits: on the deviation a unit of distance, and on the deviation itself."""
    if noise is None:
        return 0.0, 0.0
    return (_LOG2E, 0.0) if noise.scale_std else (0.0, _LOG2E)


def _power_of_2(x: int) -> int:
    return 1 << (x - 1).bit_length()


def _is_readable(x: Tensor) -> bool:
    """Whether the copy engine can read it: rows of 16-byte multiples, contiguous, at a 16-byte boundary."""
    batch, head, token, one = x.stride()
    return one == 1 and not (batch % 8 or head % 8 or token % 8 or x.data_ptr() % 16) and batch * head * token != 0


@functools.cache
def _kernels() -> SimpleNamespace:
    """What needs Triton, imported when first used."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    from models.DPI.attention.triton_decode import decode_kernel
    from models.DPI.attention.triton_prefill import prefill_kernel
    from models.DPI.attention.triton_rotate import turn

    return SimpleNamespace(prefill=prefill_kernel, decode=decode_kernel, turn=turn, TensorDescriptor=TensorDescriptor)


def _descriptor(x: Tensor, block: list[int]) -> Any:
    return _kernels().TensorDescriptor(x, x.shape, x.stride(), block)


def _on(device: torch.device) -> contextlib.AbstractContextManager:
    """Kernels are launched on the current device."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)
