"""A Triton kernel that turns keys by a rotary table, once for each table instead of once for each query tile."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 32  # keys a program


def rotate_keys(k: Tensor, cos: Tensor, sin: Tensor, out: Tensor, first: int, last: int) -> None:
    """Write keys first ... last - 1 of k (B, Hkv, N, D), turned, to the same places of `out` (B, Hkv, M, D).

    cos, sin: (at least `last`, D/2) fp32. Computed in fp32, rounded once to out's dtype.
    """
    batch, kv_heads, _, head_dim = k.shape
    half = head_dim // 2
    grid = (triton.cdiv(last - first, _BLOCK), batch)
    with torch.cuda.device(k.device if k.is_cuda else -1):
        _rotate[grid](
            k, cos, sin, out, first, last, kv_heads,
            k.stride(0), k.stride(1), k.stride(2), out.stride(0), out.stride(1), out.stride(2),
            HALF=half, BLOCK_HALF=triton.next_power_of_2(half), BLOCK=_BLOCK,
        )  # fmt: skip


@triton.jit
def _rotate(
    k, cos, sin, out, first, last, kv_heads, k_batch, k_head, k_token, out_batch, out_head, out_token,
    HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = first + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    d = tl.arange(0, BLOCK_HALF)
    inside = (token < last)[:, None] & (d < HALF)[None, :]
    token = token.to(tl.int64)
    table = token[:, None] * HALF + d[None, :]
    c = tl.load(cos + table, mask=inside, other=0.0)
    s = tl.load(sin + table, mask=inside, other=0.0)
    batch = tl.program_id(1).to(tl.int64)
    source = k + batch * k_batch + token[:, None] * k_token + d[None, :]
    target = out + batch * out_batch + token[:, None] * out_token + d[None, :]
    for _ in range(kv_heads):  # one read of the table serves all heads
        x = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        y = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
        tl.store(target, (x * c - y * s).to(out.dtype.element_ty), mask=inside)
        tl.store(target + HALF, (y * c + x * s).to(out.dtype.element_ty), mask=inside)
        source += k_head
        target += out_head
