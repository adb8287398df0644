"""A Triton kernel that rotates queries or keys by a rotary table, once for each table.

The attention kernel then reads its operands as they are. Rotating a key in it would repeat the work in every tile of
queries, and a query rotated there would sit in registers, which that kernel has none to spare of.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.DPI.attention.kernels.launching import power_of_2

_TOKENS = 32  # tokens and heads of a program
_HEADS = 8


def rotate_into(
    out: Tensor,
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    first: int,
    last: int,
    factor: float = 1.0,
    rest: Tensor | None = None,
) -> None:
    """Write tokens first ... last - 1 of x (B, H, N, D), rotated and multiplied by `factor`, to the same places of out.

    cos, sin: (at least `last`, rotary_dim/2) fp32. rest: (at least `last`,) fp32, one more factor on the components
    that do not rotate; None for 1. Computed in fp32, rounded once to out's dtype.
    """
    batch, heads, _, head_dim = x.shape
    half = cos.shape[-1]
    unrotated = head_dim - 2 * half
    grid = (triton.cdiv(heads, _HEADS), triton.cdiv(last - first, _TOKENS), batch)
    with torch.cuda.device(x.device if x.is_cuda else -1):
        rotate_kernel[grid](
            x,
            cos,
            sin,
            out,
            rest if unrotated else None,
            first,
            last,
            heads,
            factor,
            x.stride(0),
            x.stride(1),
            x.stride(2),
            out.stride(0),
            out.stride(1),
            out.stride(2),
            HALF=half,
            BLOCK_HALF=power_of_2(half),
            REST=unrotated,
            BLOCK_REST=power_of_2(max(unrotated, 1)),
            TOKENS=_TOKENS,
            HEADS=_HEADS,
            enable_fp_fusion=True,
        )


@triton.jit(do_not_specialize=["first", "last"])
def rotate_kernel(
    x,
    cos,
    sin,
    out,
    rest,
    first,
    last,
    heads,
    factor,
    x_batch,
    x_head,
    x_token,
    out_batch,
    out_head,
    out_token,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
):
    """See `rotate_into`. Strides are in elements."""
    token = first + tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    d = tl.arange(0, BLOCK_HALF)
    inside = (token < last)[:, None] & (d < HALF)[None, :]
    token = token.to(tl.int64)
    table = token[:, None] * HALF + d[None, :]
    c = tl.load(cos + table, mask=inside, other=0.0) * factor
    s = tl.load(sin + table, mask=inside, other=0.0) * factor
    batch, first_head = tl.program_id(2).to(tl.int64), tl.program_id(0) * HEADS
    source = x + batch * x_batch + first_head.to(tl.int64) * x_head + token[:, None] * x_token
    target = out + batch * out_batch + first_head.to(tl.int64) * out_head + token[:, None] * out_token
    if REST > 0:
        other = tl.arange(0, BLOCK_REST)[None, :]
        inside_rest = (token < last)[:, None] & (other < REST)
        scale = tl.full([TOKENS], 1.0, tl.float32) * factor
        if rest is not None:
            scale *= tl.load(rest + token, mask=token < last, other=0.0)
        rest_source, rest_target = source + 2 * HALF + other, target + 2 * HALF + other
    source += d[None, :]
    target += d[None, :]
    for _ in range(first_head, tl.minimum(first_head + HEADS, heads)):  # one read of the table serves them all
        low = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        high = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
        tl.store(target, (low * c - high * s).to(out.dtype.element_ty), mask=inside)
        tl.store(target + HALF, (high * c + low * s).to(out.dtype.element_ty), mask=inside)
        if REST > 0:
            unrotated = tl.load(rest_source, mask=inside_rest, other=0.0).to(tl.float32) * scale[:, None]
            tl.store(rest_target, unrotated.to(out.dtype.element_ty), mask=inside_rest)
            rest_source += x_head
            rest_target += out_head
        source += x_head
        target += out_head


@triton.jit
def load_halves(rotated, plane, first, ROWS: tl.constexpr, BLOCK_HALF: tl.constexpr):
    """Tiles (ROWS, BLOCK_HALF) of the two halves of heads of rotated queries or keys (planes, 2, N, D/2)."""
    low = rotated.load([plane, 0, first, 0]).reshape(ROWS, BLOCK_HALF)
    high = rotated.load([plane, 1, first, 0]).reshape(ROWS, BLOCK_HALF)
    return low, high


@triton.jit
def turn_back(low, high, cos, sin):
    """Both halves by the transpose of the rotation: the gradient of what was rotated from that of the result."""
    return low * cos + high * sin, high * cos - low * sin
