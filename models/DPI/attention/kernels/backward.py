"""The backward pass of attention over bands: two Triton kernels that form the logits again.

As in FlashAttention-2, a probability is p = exp(logit - lse), and the gradient of its logit is p (dp - delta), with
dp = d_out v and delta = d_out out. One kernel gives the gradients of queries, a program for each of their tiles, the
other those of keys and values. No two programs add to the same number: every run gives the same result.

Gradients are those of rotated queries and keys first, and are turned by the transpose of the rotation in fp32. Both
halves of a head are kept apart for it, as tiles of their own: turning mixes a component with that of the other half.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from models.DPI.attention.bands import Row
from models.DPI.attention.kernels.key_gradients import key_kernel
from models.DPI.attention.kernels.key_tiles import cut
from models.DPI.attention.kernels.launching import descriptor, on, power_of_2, readable
from models.DPI.attention.kernels.prefill import rotate_queries
from models.DPI.attention.kernels.query_gradients import query_kernel
from models.DPI.attention.kernels.rotate import rotate_into
from models.DPI.attention.kernels.softmax import softcap_factors
from models.DPI.attention.kernels.tiles import Tiling, prepare
from models.DPI.attention.prepared import BackwardKey, KeyTiles, Launch, PrefillKey, PreparedPrefill

_TOKENS = 32  # of a program of the kernel for delta


class Tilings(NamedTuple):
    """Of the kernel for queries, and of that for keys and values, which has tiles of queries in flight."""

    of_queries: Tiling
    of_keys: Tiling


def tilings(head_dim: int) -> Tilings:
    """Measured on an H100 for heads of 128, see benchmarks/RESULTS.md; for wider ones what shared memory holds."""
    if head_dim > 128:
        return Tilings(Tiling(64, 64, 4, 2), Tiling(32, 64, 8, 2))
    return Tilings(Tiling(128, 64, 8, 3), Tiling(64, 128, 8, 3))


class Gradients(NamedTuple):
    """Of queries (B, H, T, D), keys and values (B, Hkv, N, D) in the inputs' types, contiguous as (B, T, H, D)."""

    queries: Tensor | None
    keys: Tensor | None
    values: Tensor | None


def delta_of(d_out: Tensor, out: Tensor) -> Tensor:
    """(B, H, T) fp32: for each query the sum of d_out * out, both (B, H, T, D)."""
    d_out, out = readable(d_out), readable(out)
    batch, heads, num_queries, head_dim = out.shape
    delta = torch.empty(batch, heads, num_queries, dtype=torch.float32, device=out.device)
    with on(out.device):
        delta_kernel[(triton.cdiv(num_queries, _TOKENS), heads, batch)](
            d_out,
            out,
            delta,
            num_queries,
            heads,
            *d_out.stride()[:3],
            *out.stride()[:3],
            HEAD_DIM=head_dim,
            BLOCK_D=power_of_2(head_dim),
            TOKENS=_TOKENS,
        )
    return delta


def gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    delta: Tensor,
    d_out: Tensor,
    row: Row,
    *,
    scaling: float,
    softcap: float | None = None,
    of_queries: bool = True,
    of_keys: bool = True,
    tiles: Tilings | None = None,
) -> Gradients:
    """Gradients of what `triton.attend` got, without noise.

    lse: (B, H, T) fp32, what `attend` gave. delta: see `delta_of`. d_out: (B, H, T, D), the gradient of the output.
    of_queries: compute that of q. of_keys: those of k and v.
    """
    q, k, v, d_out = readable(q), readable(k), readable(v), readable(d_out)
    tiles = tilings(q.shape[-1]) if tiles is None else tiles
    prepared, tiles_of_keys = _prepared(row, k, tiles)
    factor, cap = softcap_factors(scaling, softcap)
    rotated_q = rotate_queries(q, prepared, factor)
    rotated_k = k.new_empty(prepared.num_slots, *k.shape)
    dq = _like(q) if of_queries else None
    dk, dv = (_like(k), _like(v)) if of_keys else (None, None)
    sums = _sums(k, tiles_of_keys) if of_keys else ()
    last = len(tiles_of_keys) - 1
    for number, (launch, key_tiles) in enumerate(zip(prepared.launches, tiles_of_keys, strict=True)):
        key_tables = _rotate_keys(k, rotated_k, launch, max(tiles.of_queries.keys, tiles.of_keys.keys))
        given = (lse, delta, prepared.bounds)
        if dq is not None:
            tables = (prepared.cos, prepared.sin, launch.tiles)
            sizes = (*dq.stride()[:3], len(launch.tiles), scaling)
            programs = len(launch.tiles) * q.shape[0] * q.shape[1]
            arguments = _Arguments(rotated_q, rotated_k, v, d_out, prepared.num_bands, cap, tiles.of_queries)
            arguments.launch(query_kernel, programs, (dq, *given, *tables, *sizes))
        if dk is not None:
            addresses = _addresses(key_tables, k.device)
            records = (addresses, key_tiles.first_runs, key_tiles.runs, key_tiles.entries)
            num_tiles = triton.cdiv(k.shape[2], tiles.of_keys.keys)
            sizes = (*dk.stride()[:3], num_tiles, k.shape[2], int(number > 0), int(number < last), scaling / factor)
            programs = num_tiles * k.shape[0] * k.shape[1]
            arguments = _Arguments(rotated_q, rotated_k, v, d_out, prepared.num_bands, cap, tiles.of_keys)
            arguments.launch(key_kernel, programs, (dk, dv, *sums, *given, *records, *sizes))
    return Gradients(dq, dk, dv)


@dataclass(frozen=True)
class _Arguments:
    """What both kernels get.

    rotated_q: (bands, B, H, T, D). rotated_k: (slots, B, Hkv, N, D). v: (B, Hkv, N, D). d_out: (B, H, T, D).
    """

    rotated_q: Tensor
    rotated_k: Tensor
    v: Tensor
    d_out: Tensor
    num_bands: int
    cap: float | None
    tile: Tiling

    def launch(self, kernel: Any, programs: int, own: tuple[Any, ...]) -> None:
        """So many programs of the kernel. own: its arguments between the descriptors and those of both."""
        tile = self.tile
        batch, heads, num_queries, head_dim = self.d_out.shape
        half, block_d = head_dim // 2, power_of_2(head_dim)
        with on(self.d_out.device):
            kernel[(programs,)](
                _by_halves(self.rotated_q, tile.queries),
                _by_halves(self.rotated_k, tile.keys),
                descriptor(self.v, [1, 1, tile.keys, block_d]),
                descriptor(self.d_out, [1, 1, tile.queries, block_d]),
                *own,
                num_queries,
                heads,
                self.v.shape[1],
                batch,
                self.cap,
                GROUP=heads // self.v.shape[1],
                BANDS=self.num_bands,
                HALF=half,
                BLOCK_HALF=power_of_2(half),
                BLOCK_D=block_d,
                BM=tile.queries,
                BN=tile.keys,
                STAGES=tile.stages,
                num_warps=tile.warps,
                enable_fp_fusion=True,
            )


def _by_halves(rotated: Tensor, rows: int) -> TensorDescriptor:
    """Of rotated queries or keys (.., B, H, N, D) as (planes, 2, N, D/2), in blocks of so many rows."""
    half = rotated.shape[-1] // 2
    apart = rotated.flatten(0, 2).unflatten(-1, (2, half)).transpose(1, 2)
    return descriptor(apart, [1, 1, rows, power_of_2(half)])


def _prepared(row: Row, k: Tensor, tiles: Tilings) -> tuple[PreparedPrefill, tuple[KeyTiles, ...]]:
    """What the kernels read of the row's bands, and for each launch of its keys; made in the first layer."""
    key = PrefillKey(k.device, k.shape[0] * k.shape[1], tiles.of_queries.queries)
    if key not in row.prepared:  # the forward pass may have tiles of other sizes
        row.prepared[key] = prepare(row, k.numel() * k.element_size(), tiles.of_queries, k.device)
    prepared = row.prepared[key]
    backward_key = BackwardKey(key, tiles.of_keys.keys)
    if backward_key not in row.prepared_backward:
        row.prepared_backward[backward_key] = cut(row, prepared, tiles.of_keys.keys, k.device)
    return prepared, row.prepared_backward[backward_key]


def _like(x: Tensor) -> Tensor:
    """(B, H, N, D) of x's type, contiguous as (B, N, H, D)."""
    batch, heads, length, head_dim = x.shape
    return torch.empty(batch, length, heads, head_dim, dtype=x.dtype, device=x.device).transpose(1, 2)


def _sums(k: Tensor, tiles_of_keys: tuple[KeyTiles, ...]) -> tuple[Tensor, Tensor]:
    """Where sums over tables, and over launches, wait in fp32: of keys and of values, (B, Hkv, N, D) or nothing."""
    launches = len(tiles_of_keys) > 1
    of_keys = launches or any(tiles.several for tiles in tiles_of_keys)
    sizes = (k.numel() if wanted else 0 for wanted in (of_keys, launches))
    sum_of_keys, sum_of_values = (torch.empty(size, dtype=torch.float32, device=k.device) for size in sizes)
    return sum_of_keys, sum_of_values


def _rotate_keys(k: Tensor, rotated: Tensor, launch: Launch, size: int) -> list[tuple[Tensor, Tensor]]:
    """Each table's keys to its slot of `rotated` (slots, B, Hkv, N, D), in whole tiles of so many. Returns the tables.

    Keys of a tile that no query sees are multiplied by gradients of 0, and so must be numbers.
    """
    tables = []
    for slot, (table, low, high) in enumerate(launch.tables):
        low, high = low // size * size, min(triton.cdiv(high, size) * size, k.shape[2])
        tables.append(table.of_keys(high, k.device))
        if low < high:
            rotate_into(rotated[slot], k, *tables[-1], low, high)
    return tables


def _addresses(tables: list[tuple[Tensor, Tensor]], device: torch.device) -> Tensor:
    """Where cosines and sines are, (slots, 2) int64, for as long as the tables are held."""
    addresses = torch.tensor([[cos.data_ptr(), sin.data_ptr()] for cos, sin in tables])
    return addresses.to(device, non_blocking=True)


@triton.jit(do_not_specialize=["num_queries"])
def delta_kernel(
    d_out,
    out,
    delta,
    num_queries,
    num_heads,
    d_out_batch,
    d_out_head,
    d_out_token,
    out_batch,
    out_head,
    out_token,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """See `delta_of`."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    head, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    inside = (token < num_queries)[:, None] & (d < HEAD_DIM)[None, :]
    token = token.to(tl.int64)
    d_out += batch * d_out_batch + head * d_out_head + token[:, None] * d_out_token + d[None, :]
    out += batch * out_batch + head * out_head + token[:, None] * out_token + d[None, :]
    products = tl.load(d_out, mask=inside, other=0.0).to(tl.float32) * tl.load(out, mask=inside, other=0.0)
    place = (batch * num_heads + head) * num_queries + token
    tl.store(delta + place, tl.sum(products, 1), mask=token < num_queries)
