"""Attention over bands in O(N) memory: blocks of queries, PyTorch's fused kernels, partial results merged.

For a block of queries each band splits into a part that all of them see whole, which a fused kernel computes
without a mask, and a border where they differ, which is narrow: a fused kernel with a mask computes it on a CPU, the
definition elsewhere. The parts are merged by their log-sum-exp; a sink, a logit without a value, is one part more.
With noise or a soft cap, which the kernels do not have, a block's logits are formed whole. The backward pass forms the
logits again, block by block, because the kernels' log-sum-exp carries no gradient.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.DPI.attention import reference
from models.DPI.attention.bands import Plan, Segment
from models.DPI.attention.noise import Noise
from models.DPI.attention.tables import KeyTable, rotate

# Queries of a block: wide enough for the matrix products, narrow enough that borders, formed whole, stay cheap.
# One core, SmolLM2's shape, 16,384 tokens, chunk 3000: 128 4.4 s, 256 4.3 s, 512 5.3 s, 1,024 7.7 s; stock 3.7 s.
_BLOCK = {"cpu": 256}
_BLOCK_ELSEWHERE = 2048
# Bound on the logits that are formed at a time: 2**25 fp32 numbers, 128 MiB.
_MAX_LOGITS = 1 << 25
# Of FlashAttention's heads.
_MAX_FLASH_DIM = 256


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Sequence[Segment],
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    noise: Noise | None = None,
    layer: int = 0,
) -> Tensor:
    """As `reference.attend`, without the probabilities."""
    job = _Job(segments, k.shape[2] - q.shape[2], scaling, softcap, noise, layer)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, sinks)):
        out: Tensor = _Differentiable.apply(q, k, v, sinks, job)  # type: ignore[no-untyped-call]
        return out
    return _forward(q, k, v, sinks, job)


@dataclass(frozen=True)
class _Job:
    """What attention computes besides its tensors. past: keys before the first query."""

    segments: Sequence[Segment]
    past: int
    scaling: float
    softcap: float | None
    noise: Noise | None
    layer: int

    def forms_logits(self, segment: Segment) -> bool:
        """Whether something happens to the segment's logits that the kernels cannot do."""
        noisy = self.noise is not None and segment.noise_std is not None and bool(segment.noise_std.any())
        return noisy or self.softcap is not None

    def blocks(self, q: Tensor, k: Tensor) -> Iterator["_Block"]:
        """All queries in blocks."""
        lengths: dict[KeyTable, int] = {}  # how many keys each table is needed for
        for band in (band for segment in self.segments for band in segment.bands):
            lengths[band.table] = max(lengths.get(band.table, 0), int(band.stop[-1]))
        rotated: dict[KeyTable, Tensor] = {}  # keys, while consecutive segments share their table
        for segment in self.segments:
            whole = self.forms_logits(segment)
            if not whole:
                rotated = _rotate_keys(k, segment, lengths, rotated)
            for rows in _blocks(segment, q, segment.num_keys if whole else 0):
                first = segment.first - self.past
                at = slice(first + rows.start, first + rows.stop)
                yield _Block(segment, rows, at, None if whole else rotated)

    def attend_whole(self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, block: "_Block") -> Tensor:
        """By whole rows of logits: (B, H, T, D) un-rotated queries of one block -> (B, H, T, D)."""
        p = reference.probabilities_of(
            q,
            k,
            block.segment,
            scaling=self.scaling,
            softcap=self.softcap,
            sinks=sinks,
            noise=self.noise,
            layer=self.layer,
            rows=block.rows,
        )
        return reference.grouped_matmul(p, v[:, :, : p.shape[-1]])


class _Block(NamedTuple):
    """Queries that are computed together.

    rows: of the segment. at: their places on the axis of queries. rotated: the keys by each table of the segment,
    (B, Hkv, n, D); None where logits are formed whole.
    """

    segment: Segment
    rows: slice
    at: slice
    rotated: dict[KeyTable, Tensor] | None


def _forward(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, job: _Job, lse: Tensor | None = None) -> Tensor:
    """lse: (B, H, T), receives the log-sum-exps, sinks included, of queries whose logits are not formed whole."""
    out = torch.empty_like(q)
    for block in job.blocks(q, k):
        if block.rotated is None:
            out[:, :, block.at] = job.attend_whole(q[:, :, block.at], k, v, sinks, block)
            continue
        parts = _parts_of_block(q[:, :, block.at], v, block, block.rotated, job.scaling)
        totals = [part for _, part in parts]
        if sinks is not None:
            totals.append(sinks.to(totals[0].dtype)[None, :, None].expand_as(totals[0]))
        out[:, :, block.at] = _merge([part for part, _ in parts], totals).to(q.dtype)
        if lse is not None:
            lse[:, :, block.at] = torch.stack(totals).logsumexp(0)
    return out


class _Differentiable(torch.autograd.Function):
    """`_forward` with a backward pass that keeps the inputs, the outputs and their log-sum-exps."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, job: _Job) -> Tensor:
        """See `_forward`."""
        lse = torch.zeros(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)
        out = _forward(q, k, v, sinks, job, lse)
        ctx.save_for_backward(q, k, v, sinks, out, lse)
        ctx.job = job
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k, v and the sinks."""
        q, k, v, sinks, out, lse = ctx.saved_tensors
        return *_backward(q, k, v, sinks, out, lse, d_out, ctx.job), None


def _backward(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, out: Tensor, lse: Tensor, d_out: Tensor, job: _Job
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of q, k, v and the sinks, in their types, summed in fp32 or wider."""
    work = lse.dtype
    dq, dk, dv = (torch.zeros(x.shape, dtype=work, device=x.device) for x in (q, k, v))
    d_sinks = None if sinks is None else torch.zeros(sinks.shape, dtype=work, device=sinks.device)
    means = (d_out.to(work) * out.to(work)).sum(-1)  # (B, H, T), of the gradients of a query's probabilities
    for block in job.blocks(q, k):
        at = block.at
        if block.rotated is None:
            with torch.enable_grad():
                given = (q[:, :, at], k, v) if sinks is None else (q[:, :, at], k, v, sinks)
                inputs = [x.detach().requires_grad_() for x in given]
                part = job.attend_whole(inputs[0], inputs[1], inputs[2], None if sinks is None else inputs[3], block)
            grads = torch.autograd.grad(part, inputs, d_out[:, :, at])
            dq[:, :, at] = grads[0]
            dk += grads[1]
            dv += grads[2]
            if d_sinks is not None:
                d_sinks += grads[3]
        else:
            known = (lse[:, :, at, None], means[:, :, at, None], d_out[:, :, at])
            dq[:, :, at] = _backward_of_block(q[:, :, at], v, *known, block, block.rotated, job.scaling, dk, dv)
            if sinks is not None and d_sinks is not None:  # a sink's value is 0
                p = (sinks.to(work)[None, :, None] - lse[:, :, at]).exp()
                d_sinks -= (p * means[:, :, at]).sum((0, 2))
    given_sinks = None if sinks is None or d_sinks is None else d_sinks.to(sinks.dtype)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), given_sinks


def _backward_of_block(
    q: Tensor,
    v: Tensor,
    lse: Tensor,
    means: Tensor,
    d_out: Tensor,
    block: _Block,
    rotated: dict[KeyTable, Tensor],
    scaling: float,
    dk: Tensor,
    dv: Tensor,
) -> Tensor:
    """The gradient of one block's un-rotated queries, (B, H, T, D); adds to dk and dv, (B, Hkv, N, D).

    lse, means: (B, H, T, 1).
    """
    dq = torch.zeros(q.shape, dtype=lse.dtype, device=q.device)
    width = max(1, _MAX_LOGITS // lse.numel())
    for band in block.segment.bands:
        start, stop = band.start[block.rows], band.stop[block.rows]
        low, high = int(start[0]), int(stop[-1])
        rotated_q = band.rotate_queries(q, block.rows)
        d_rotated_q = torch.zeros_like(dq)
        for first in range(low, high, width):
            at = slice(first, min(first + width, high))
            keys = rotated[band.table][:, :, at]
            # Rounded logits would not fit the log-sum-exp of unrounded ones.
            logits = _wide_products(rotated_q, keys, lse.dtype) * scaling
            p = (logits - lse).exp()
            if at.start < int(start[-1]) or at.stop > int(stop[0]):
                p = p.masked_fill(~_seen(start, stop, at).to(q.device), 0.0)
            dv[:, :, at] += _sum_over_queries(p.to(q.dtype), d_out, v.shape[1])
            d_p = _wide_products(d_out, v[:, :, at], lse.dtype)
            d_logits = (p * (d_p - means) * scaling).to(q.dtype)
            d_rotated_q += reference.grouped_matmul(d_logits, keys)
            key_cos, key_sin = (table[at] for table in band.key_tables(high, q.device))
            dk[:, :, at] += _rotate_back(
                _sum_over_queries(d_logits, rotated_q, v.shape[1]).to(lse.dtype), key_cos, key_sin
            )
        dq += band.rotate_queries(d_rotated_q, block.rows, back=True)
    return dq


def _wide_products(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """Products of queries (B, H, T, D) and keys (B, Hkv, n, D) in a wider type, (B, H, T, n)."""
    return reference.grouped_matmul(x.to(dtype), y.to(dtype).transpose(2, 3))


def _sum_over_queries(x: Tensor, y: Tensor, kv_heads: int) -> Tensor:
    """Products summed over the queries of each key head: (B, H, T, n), (B, H, T, D) -> (B, Hkv, n, D)."""
    x, y = (z.reshape(z.shape[0], kv_heads, -1, z.shape[-1]) for z in (x, y))
    return x.transpose(2, 3) @ y


def _rotate_back(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The transpose of `rotate`, which is its inverse only where the table is not scaled or blended."""
    return rotate(x, cos, -sin)


def _blocks(segment: Segment, q: Tensor, logits_width: int) -> list[slice]:
    """Rows of a segment in blocks; smaller ones where whole rows of logits are formed."""
    size = _BLOCK.get(q.device.type, _BLOCK_ELSEWHERE)
    if logits_width:
        size = max(1, min(size, _MAX_LOGITS // (logits_width * q.shape[0] * q.shape[1])))
    total = segment.last - segment.first
    return [slice(first, min(first + size, total)) for first in range(0, total, size)]


def _rotate_keys(
    k: Tensor, segment: Segment, lengths: dict[KeyTable, int], known: dict[KeyTable, Tensor]
) -> dict[KeyTable, Tensor]:
    """Keys rotated by each of the segment's tables, (B, Hkv, n, D); n reaches as far as any segment needs the table."""
    result: dict[KeyTable, Tensor] = {}
    for band in segment.bands:
        table = band.table
        if table in known:
            result[table] = known[table]
        elif table not in result:
            cos, sin = table.of_keys(lengths[table], k.device)
            result[table] = rotate(k[:, :, : lengths[table]], cos, sin)
    return result


def _parts_of_block(
    q: Tensor, v: Tensor, block: _Block, rotated: dict[KeyTable, Tensor], scaling: float
) -> list[tuple[Tensor, Tensor]]:
    """Attention of one block's un-rotated queries (B, H, T, D) to parts of their keys, with its log-sum-exp."""
    parts = []
    for band in block.segment.bands:
        start, stop = band.start[block.rows], band.stop[block.rows]
        low, high = int(start[0]), int(stop[-1])
        if low >= high:
            continue
        rotated_q = band.rotate_queries(q, block.rows)
        keys = rotated[band.table]
        whole_low, whole_high = int(start[-1]), int(stop[0])  # keys that every query of the block sees
        if whole_low < whole_high:
            borders = [(low, whole_low), (whole_high, high)]
            parts.append(_fused(rotated_q, keys[:, :, whole_low:whole_high], v[:, :, whole_low:whole_high], scaling))
        else:
            borders = [(low, high)]
        for first, last in borders:
            if first < last:
                at = slice(first, last)
                border = _cpu_border if q.device.type == "cpu" else _masked
                parts.append(border(rotated_q, keys[:, :, at], v[:, :, at], _seen(start, stop, at), scaling))
    return parts


def _seen(start: Tensor, stop: Tensor, keys: slice) -> Tensor:
    """(T, n) bool on the CPU: which of the keys lie between the boundaries (T,)."""
    index = torch.arange(keys.start, keys.stop)
    return (index >= start[:, None]) & (index < stop[:, None])


def _merge(parts: list[Tensor], totals: list[Tensor]) -> Tensor:
    """Softmax over the union of parts: outputs (B, H, T, D) weighted by their log-sum-exps (B, H, T).

    One log-sum-exp more than parts: of sinks, whose output is 0.
    """
    if len(totals) == 1:
        return parts[0]
    weights = torch.stack(totals).softmax(0)
    out = parts[0] * weights[0, ..., None]
    for part, weight in zip(parts[1:], weights[1:], strict=False):
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


def _cpu_border(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """As `_masked`, by PyTorch's kernel: a quarter of the time in fp32, a twentieth in bf16."""
    b, h, t, d = q.shape
    groups = h // k.shape[1]
    mask = torch.zeros(seen.shape, dtype=q.dtype).masked_fill_(~seen, float("-inf")).repeat(groups, 1)
    out, lse = _CPU_FLASH(q.reshape(b, -1, groups * t, d), k, v, attn_mask=mask[None, None], scale=scaling)
    # The kernel gives a query that sees no key an output of 0, as it should be, and a log-sum-exp of 0.
    return out.reshape(b, h, t, d), lse.reshape(b, h, t).masked_fill(~seen.any(-1), float("-inf"))


def _fused(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """All queries on all keys by one of PyTorch's kernels. Returns the output and its log-sum-exp."""
    b, h, t, d = q.shape
    kv = k.shape[1]
    q = q.reshape(b, kv, h // kv * t, d)  # query heads of one key head side by side: no repeated keys
    out, lse = _kernel(q)(q, k, v, scaling)
    return out.reshape(b, h, t, d), lse.reshape(b, h, t)


def flash_obstacle(q: Tensor, plan: Plan) -> str | None:
    """Why FlashAttention cannot compute these queries and bands, or None."""
    return _not_for_flash(q) or (None if plan.noise is None else "FlashAttention adds no noise")


def _not_for_flash(q: Tensor) -> str | None:
    if q.device.type != "cuda":
        return f"it needs a CUDA device, and the tensors are on {q.device.type}"
    if q.dtype not in (torch.bfloat16, torch.float16):
        return f"FlashAttention takes bfloat16 and float16, and the queries are {q.dtype}"
    if q.shape[-1] % 8 or q.shape[-1] > _MAX_FLASH_DIM:
        return f"head_dim = {q.shape[-1]} must be a multiple of 8 of at most {_MAX_FLASH_DIM}"
    return None


def _kernel(q: Tensor) -> Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]:
    """PyTorch's FlashAttention where it takes the queries, else what the device has."""
    if q.device.type == "cpu":
        return _cpu_kernel
    if q.device.type == "cuda":
        return _flash_kernel if _not_for_flash(q) is None else _efficient_kernel
    return _plain_kernel


# PyTorch has these under names with an underscore alone: the public function keeps its log-sum-exp to itself.
_CPU_FLASH, _FLASH, _EFFICIENT = (
    getattr(torch.ops.aten, f"_scaled_dot_product_{name}_attention{suffix}")
    for name, suffix in (("flash", "_for_cpu"), ("flash", ""), ("efficient", ""))
)


def _cpu_kernel(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    out, lse = _CPU_FLASH(q, k, v, scale=scaling)
    return out, lse


def _flash_kernel(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    out, lse = _FLASH(q, k, v, scale=scaling)[:2]
    return out, lse


def _efficient_kernel(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    out, lse = _EFFICIENT(q, k, v, None, True, scale=scaling)[:2]
    return out, lse[:, :, : q.shape[2]]  # the kernel pads the rows of its log-sum-exp


def _plain_kernel(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    return _masked(q, k, v, torch.ones(q.shape[2], k.shape[2], dtype=torch.bool), scaling)
