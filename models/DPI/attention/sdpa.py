"""Attention over bands in O(N) memory: blocks of queries, PyTorch's fused kernels, partial results merged.

For a block of queries each band splits into a part that all of them see whole, which a fused kernel computes
without a mask, and a border where they differ, which is narrow and computed by the definition. The parts are
merged by their log-sum-exp. With noise a block's logits are formed whole.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.DPI.attention import reference
from models.DPI.attention.bands import Band, Segment
from models.DPI.attention.noise import Noise
from models.DPI.attention.tables import KeyPositions, rotate

# What names a key table: its frequencies, and the positions of the keys.
Table = tuple[int, KeyPositions]

# Queries a block: wide enough for the matrix products, narrow enough that borders, which are formed whole, stay cheap.
# One core, SmolLM2's shape, 16,384 tokens, chunk 3000: 128 4.4 s, 256 4.3 s, 512 5.3 s, 1,024 7.7 s; stock 3.7 s.
_BLOCK = {"cpu": 256}
_BLOCK_ELSEWHERE = 2048
# Bound on the logits that are formed at a time: 2**25 fp32 numbers, 128 MiB.
_MAX_LOGITS = 1 << 25


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Sequence[Segment],
    *,
    scaling: float,
    noise: Noise | None = None,
    layer: int = 0,
) -> Tensor:
    """As `reference.attend`, without the probabilities."""
    past = k.shape[2] - q.shape[2]
    out = torch.empty_like(q)
    lengths: dict[Table, int] = {}
    for band in (band for segment in segments for band in segment.bands):
        lengths[_table_of(band)] = max(lengths.get(_table_of(band), 0), int(band.stop[-1]))
    turned: dict[Table, Tensor] = {}  # rotated keys, while consecutive segments share their table
    for segment in segments:
        noisy = noise is not None and segment.noise_std is not None and bool(segment.noise_std.any())
        if not noisy:
            turned = _rotate_keys(k, segment, lengths, turned)
        for rows in _blocks(segment, q, k.shape[2] if noisy else 0):
            at = slice(segment.first - past + rows.start, segment.first - past + rows.stop)
            if noisy:
                p = reference.probabilities_of(
                    q[:, :, at], k, segment, scaling=scaling, noise=noise, layer=layer, rows=rows
                )
                out[:, :, at] = reference.grouped_matmul(p, v[:, :, : p.shape[-1]])
            else:
                out[:, :, at] = _attend_block(q[:, :, at], v, segment, turned, rows, scaling)
    return out


def _blocks(segment: Segment, q: Tensor, logits_width: int) -> list[slice]:
    """Rows of a segment in blocks; smaller ones where whole rows of logits are formed."""
    size = _BLOCK.get(q.device.type, _BLOCK_ELSEWHERE)
    if logits_width:
        size = max(1, min(size, _MAX_LOGITS // (logits_width * q.shape[0] * q.shape[1])))
    total = segment.last - segment.first
    return [slice(first, min(first + size, total)) for first in range(0, total, size)]


def _table_of(band: Band) -> Table:
    return id(band.frequencies), band.keys


def _rotate_keys(
    k: Tensor, segment: Segment, lengths: dict[Table, int], known: dict[Table, Tensor]
) -> dict[Table, Tensor]:
    """Keys turned by each of the segment's tables, (B, Hkv, n, D); n reaches as far as any segment needs the table."""
    result: dict[Table, Tensor] = {}
    for band in segment.bands:
        table = _table_of(band)
        if table in known:
            result[table] = known[table]
        elif table not in result:
            cos, sin = band.key_tables(lengths[table], k.device)
            result[table] = rotate(k[:, :, : lengths[table]], cos, sin)
    return result


def _attend_block(
    q: Tensor,
    v: Tensor,
    segment: Segment,
    turned: dict[Table, Tensor],
    rows: slice,
    scaling: float,
) -> Tensor:
    """(B, H, T, D) un-rotated queries of one block -> (B, H, T, D)."""
    parts = []
    for band in segment.bands:
        start, stop = band.start[rows], band.stop[rows]
        low, high = int(start[0]), int(stop[-1])
        if low >= high:
            continue
        cos, sin = band.query_tables(q.device)
        turned_q = rotate(q, cos[rows], sin[rows])
        keys = turned[_table_of(band)]
        whole_low, whole_high = int(start[-1]), int(stop[0])  # keys that every query of the block sees
        if whole_low < whole_high:
            borders = [(low, whole_low), (whole_high, high)]
            parts.append(_fused(turned_q, keys[:, :, whole_low:whole_high], v[:, :, whole_low:whole_high], scaling))
        else:
            borders = [(low, high)]
        for first, last in borders:
            if first < last:
                index = torch.arange(first, last)
                seen = (index >= start[:, None]) & (index < stop[:, None])
                parts.append(_masked(turned_q, keys[:, :, first:last], v[:, :, first:last], seen, scaling))
    return _merge(parts).to(q.dtype)


def _merge(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Softmax over the union of parts: outputs (B, H, T, D) weighted by their log-sum-exps (B, H, T)."""
    if len(parts) == 1:
        return parts[0][0]
    weights = torch.stack([lse for _, lse in parts]).softmax(0)
    out = parts[0][0] * weights[0, ..., None]
    for (part, _), weight in zip(parts[1:], weights[1:], strict=True):
        out = out.addcmul_(part.to(out.dtype), weight[..., None])
    return out


def _masked(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """A border by the definition. seen: (T, n) bool on the CPU. Returns the output and its log-sum-exp, fp32."""
    work = torch.promote_types(q.dtype, torch.float32)
    logits = reference.grouped_matmul(q, k.transpose(2, 3)).to(work) * scaling
    logits = logits.masked_fill(~seen.to(q.device), float("-inf"))
    lse = logits.logsumexp(-1)
    # A query that sees no key here has a log-sum-exp of -inf, and a weight of 0 in the merge.
    p = (logits - lse.clamp(min=torch.finfo(work).min)[..., None]).exp()
    return reference.grouped_matmul(p.to(q.dtype), v).to(work), lse


def _fused(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """All queries on all keys by one of PyTorch's kernels. Returns the output and its log-sum-exp."""
    b, h, t, d = q.shape
    kv = k.shape[1]
    q = q.reshape(b, kv, h // kv * t, d)  # query heads of one key head side by side: no repeated keys
    out, lse = _kernel(q)(q, k, v, scaling)
    return out.reshape(b, h, t, d), lse.reshape(b, h, t)


def _kernel(q: Tensor) -> Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]:
    if q.device.type == "cpu":
        return _cpu_kernel
    if q.device.type == "cuda":
        half = q.dtype in (torch.float16, torch.bfloat16)
        return _flash_kernel if half and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256 else _efficient_kernel
    return _plain_kernel


def _cpu_kernel(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scaling)


def _flash_kernel(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=scaling)[:2]


def _efficient_kernel(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True, scale=scaling)[:2]
    return out, lse[:, :, : q.shape[2]]  # the kernel pads the rows of its log-sum-exp


def _plain_kernel(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    return _masked(q, k, v, torch.ones(q.shape[2], k.shape[2], dtype=torch.bool), scaling)
