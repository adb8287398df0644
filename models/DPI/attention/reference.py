"""Attention over bands by the definition: every logit of the queries is formed. The oracle of the others.

In fp64 it is exact to rounding; in bf16 it does what eager attention in bf16 does (logits and probabilities in
bf16, softmax in fp32).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.DPI.attention import noise as noise_module
from models.DPI.attention.bands import EVERY_KEY, Band, Segment
from models.DPI.attention.noise import Noise
from models.DPI.attention.tables import rotate


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
    need_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention of un-rotated queries and keys over bands.

    q: (B, H, T, D), the last T of N tokens; k, v: (B, Hkv, N, D), H a multiple of Hkv.
    segments: cover queries N - T ... N - 1. softcap, sinks: see `api.attend`.
    Returns (B, H, T, D) and, if asked for, the probabilities (B, H, T, N).
    """
    past = k.shape[2] - q.shape[2]
    out = torch.empty_like(q)
    weights = q.new_zeros(*q.shape[:3], k.shape[2]) if need_weights else None
    for segment in segments:
        at = slice(segment.first - past, segment.last - past)
        probabilities = probabilities_of(
            q[:, :, at], k, segment, scaling=scaling, softcap=softcap, sinks=sinks, noise=noise, layer=layer
        )
        out[:, :, at] = grouped_matmul(probabilities, v[:, :, : probabilities.shape[-1]])
        if weights is not None:
            weights[:, :, at, : probabilities.shape[-1]] = probabilities
    return out, weights


def probabilities_of(
    q: Tensor,
    k: Tensor,
    segment: Segment,
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    noise: Noise | None = None,
    layer: int = 0,
    rows: slice = slice(None),
) -> Tensor:
    """Softmax over the union of a segment's bands and the sinks, (B, H, T, n) in q's dtype, of the keys alone.

    sinks: (H,), see `api.attend`. See `masked_logits_of`.
    """
    logits = masked_logits_of(q, k, segment, scaling=scaling, softcap=softcap, noise=noise, layer=layer, rows=rows)
    if sinks is None:
        return logits.softmax(-1).to(q.dtype)
    columns = sinks.to(logits.dtype)[None, :, None, None].expand(*logits.shape[:3], 1)
    return torch.cat((logits, columns), dim=-1).softmax(-1)[..., :-1].to(q.dtype)


def masked_logits_of(
    q: Tensor,
    k: Tensor,
    segment: Segment,
    *,
    scaling: float,
    softcap: float | None = None,
    noise: Noise | None = None,
    layer: int = 0,
    rows: slice = slice(None),
) -> Tensor:
    """What the softmax gets: scaled logits, capped, with noise, -inf where a query does not see a key.

    q: (B, H, T, D), those queries of the segment that `rows` picks; k: (B, Hkv, N, D), keys from 0 on.
    Returns (B, H, T, n), fp32 or wider, n the keys that these queries see at most.
    """
    logits, covered = logits_of(q, k, segment, scaling=scaling, rows=rows)
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    if noise is not None and segment.noise_std is not None:
        n = logits.shape[-1]
        queries = torch.arange(segment.first, segment.last)[rows].to(q.device)
        keys = torch.arange(n, device=q.device)
        noisy = torch.zeros(q.shape[2], n, dtype=torch.bool, device=q.device)
        for band in segment.bands:
            if band.noise_period is not None:
                inside = _inside(band, rows, n, q.device)
                noisy |= inside if band.noise_period == EVERY_KEY else inside & (keys % band.noise_period != 0)
        std = segment.noise_std[rows].to(q.device)
        logits = noise_module.apply(noise, logits, covered, noisy, std, layer, queries, keys)
    return logits.masked_fill(~covered, float("-inf"))


def logits_of(
    q: Tensor, k: Tensor, segment: Segment, *, scaling: float, rows: slice = slice(None)
) -> tuple[Tensor, Tensor]:
    """Scaled logits (B, H, T, n), fp32 or wider, and which of them a band covers, (T, n) bool."""
    n = max(int(band.stop[rows][-1]) for band in segment.bands)
    k = k[:, :, :n]
    work = torch.promote_types(q.dtype, torch.float32)
    logits = torch.zeros(*q.shape[:3], n, dtype=work, device=q.device)
    covered = torch.zeros(q.shape[2], n, dtype=torch.bool, device=q.device)
    for band in segment.bands:
        low, high = int(band.start[rows][0]), int(band.stop[rows][-1])  # the boundaries never fall
        if low >= high:
            continue
        cos, sin = band.query_tables(q.device)
        rotated_q = rotate(q, cos[rows], sin[rows])
        cos, sin = band.key_tables(high, q.device)
        rotated_k = rotate(k[:, :, low:high], cos[low:], sin[low:])
        inside = _inside(band, rows, n, q.device)
        band_logits = grouped_matmul(rotated_q, rotated_k.transpose(2, 3)).to(work) * scaling
        logits[..., low:high] = torch.where(inside[:, low:high], band_logits, logits[..., low:high])
        covered |= inside
    return logits, covered


def grouped_matmul(x: Tensor, y: Tensor) -> Tensor:
    """Matrix products of H query heads with Hkv key heads, keys not repeated: (B, H, T, A), (B, Hkv, A, C)."""
    b, h, t, a = x.shape
    kv = y.shape[1]
    return (x.reshape(b, kv, h // kv * t, a) @ y).reshape(b, h, t, y.shape[-1])


def _inside(band: Band, rows: slice, n: int, device: torch.device) -> Tensor:
    """(T, n) bool: the band's keys."""
    keys = torch.arange(n, device=device)
    start, stop = band.start[rows].to(device), band.stop[rows].to(device)
    return (keys >= start[:, None]) & (keys < stop[:, None])
