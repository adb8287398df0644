"""Attention over bands on CUDA, straight from the paged cache: requests with one query in one launch, others each with
the prefill kernel for contiguous keys, which reads keys that were rotated out of their blocks. Within a layer the CPU
never waits for the GPU; once for each step it does, where requests have several queries.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from vllm_gali.gali import Plan, Row, Segment, fused

if TYPE_CHECKING:  # they import Triton
    from vllm_gali.gali_kernels import Launch
    from vllm_gali.paged import Batch
    from vllm_gali.pieces import Step


class Shape(NamedTuple):
    """Of a layer's heads. heads: of queries."""

    heads: int
    kv_heads: int
    head_dim: int


@dataclass
class Prefill:
    """A request with several queries: those `at` of the step's, on its `row` of the block table.

    bands: as the prefill kernel takes them. tables: for each of its launches what `pages.read` rotates by, and the
    first key and the end of the keys that it needs; made in the first layer.
    """

    at: slice
    blocks: Tensor
    bands: Row
    tables: dict[int, "Tables"] = field(default_factory=dict)


class Tables(NamedTuple):
    """Records of `pages.read`, (slots, 4) int64, the keys first ... last - 1 that they need, and what they point to."""

    records: Tensor
    first: int
    last: int
    alive: list[Tensor]


@dataclass
class Prepared:
    """A batch's requests. step: those with one query, None where there are none."""

    step: "Step | None"
    prefills: list[Prefill]


def obstacle(shape: Shape, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why layers of such heads cannot run on the device, or None."""
    if shape.heads % shape.kv_heads:
        return f"{shape.heads} query heads are no multiple of {shape.kv_heads} key heads"
    why = fused.obstacle(torch.empty(0, shape.heads, 1, shape.head_dim, dtype=dtype, device=device), Plan(()))
    if why is None and device.type == "cuda" and torch.cuda.get_device_capability(device) < (9, 0):
        return "the kernels that read its pages were compiled and run for compute capability 9.0 (Hopper) alone"
    return why


def write(key: Tensor, value: Tensor, cache: Tensor, slots: Tensor) -> None:
    """See `paged.write`; the CPU waits for nothing."""
    from vllm_gali import pages

    key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (key, value))
    pages.write(key, value, cache, slots)


def attend(query: Tensor, cache: Tensor, batch: "Batch", scaling: float, out: Tensor) -> None:
    """See `paged.gather`. Raises ValueError for a cache that the kernels cannot read."""
    _check(query, cache)
    shape = Shape(query.shape[1], cache.shape[1], query.shape[2])
    if query.stride(2) != 1:
        query = query.contiguous()
    prepared = prepare(batch, shape, query.device)
    if prepared.step is not None:
        from vllm_gali import decode

        decode.attend(query, cache, prepared.step, scaling, out)
    for prefill in prepared.prefills:
        out[prefill.at] = _attend_many(query[prefill.at], cache, prefill, scaling)


def prepare(batch: "Batch", shape: Shape, device: torch.device) -> Prepared:
    """What a step's layers of one shape share, made for the first of them. It may be called ahead of the layers."""
    found: Prepared | None = batch.prepared.get(shape)
    if found is not None:
        return found
    ones: list[tuple[int, int, Segment]] = []
    prefills = []
    for number, segments in enumerate(batch.segments):
        first, end = batch.starts[number], batch.starts[number + 1]
        if not segments:
            continue
        if end - first == 1:
            ones.append((number, first, segments[-1]))
        else:
            bands = Row((0,), 0, batch.lengths[number], 0, tuple(segments))
            prefills.append(Prefill(slice(first, end), batch.block_table[number], bands))
    found = batch.prepared[shape] = Prepared(_step(batch, ones, shape, device), prefills)
    return found


def _step(
    batch: "Batch", requests: list[tuple[int, int, Segment]], shape: Shape, device: torch.device
) -> "Step | None":
    if not requests:
        return None
    from vllm_gali import pieces

    room = batch.kept.get(shape)
    if room is None:
        room = batch.kept[shape] = pieces.Room(device)
    return pieces.prepare(requests, batch.block_table, shape, room)


def _check(query: Tensor, cache: Tensor) -> None:
    if cache.dtype != query.dtype:
        raise ValueError(
            f"gali: the cache holds {cache.dtype} and queries are {query.dtype}; on CUDA the two must be equal, "
            "leave kv_cache_dtype out"
        )
    if cache.shape[2] % 16 or cache.stride(3) != 1:
        raise ValueError(
            f"gali: the cache has blocks of {cache.shape[2]} tokens, its components {cache.stride(3)} places apart; "
            "the kernels read blocks of a multiple of 16 tokens, components side by side"
        )


def _attend_many(query: Tensor, cache: Tensor, prefill: Prefill, scaling: float) -> Tensor:
    """One request's queries (T, H, D) on all of its keys, (T, H, D)."""
    from vllm_gali import gali_kernels, pages

    length, (_, kv_heads, _, _), head_dim = prefill.bands.length, cache.shape, query.shape[2]
    values = cache.new_empty(1, kv_heads, length, head_dim)
    filled = False

    def rotate(_: Tensor, rotated: Tensor, launch: "Launch") -> None:
        nonlocal filled
        tables = prefill.tables.get(id(launch))
        if tables is None:
            tables = prefill.tables[id(launch)] = _tables_of(launch, cache.device)
        first, last = (tables.first, tables.last) if filled else (0, length)
        if first < last:
            pages.read(cache, prefill.blocks, tables.records, rotated[:, 0], values[0], first, last, not filled)
        filled = True

    q = query.transpose(0, 1)[None]
    found = gali_kernels.prefill.attend(q, values, values, prefill.bands, scaling=scaling, rotate_keys=rotate)
    return found[0].transpose(0, 1)


def _tables_of(launch: "Launch", device: torch.device) -> Tables:
    """For `pages.read`, a record for each of the launch's slots."""
    from vllm_gali import pieces

    rows, alive = [], []
    for table, low, high in launch.tables:
        cos, sin = table.of_keys(max(high, 1), device)
        rows.append([cos.data_ptr(), sin.data_ptr(), low, high])
        alive += [cos, sin]
    needed = [(low, high) for _, low, high in launch.tables if low < high]
    records = torch.empty(len(rows), 4, dtype=torch.int64, device=device)
    pieces.copy(torch.tensor(rows), records)
    first, last = min((low for low, _ in needed), default=0), max((high for _, high in needed), default=0)
    return Tables(records, first, last, alive)


def workspace(shape: Shape, bands: int, length: int, queries: int) -> int:
    """Bytes that a layer needs at most besides the cache: rotated keys and values of a request, queries, outputs.

    bands: of a segment. length: tokens of a request at most. queries: of a step at most.
    """
    from vllm_gali.gali_kernels import CACHED_KEYS, KEY_BYTES

    keys = 2 * shape.kv_heads * length * shape.head_dim
    tables = 4 * shape.head_dim * CACHED_KEYS  # cosines and sines of keys, fp32
    return tables + keys + max(bands * keys, KEY_BYTES) + 2 * (bands + 1) * queries * shape.heads * shape.head_dim
