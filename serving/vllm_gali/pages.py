"""Triton kernels that write keys and values into a paged cache, and read them out of it for many queries.

Reading rotates: a key leaves its block once, and goes to the buffer of each table that needs it, from where the prefill
kernel for contiguous keys takes it. Values go to a buffer of their own in the same pass.
"""

import triton
import triton.language as tl
from torch import Tensor

from vllm_gali.gali_kernels import on, power_of_2

_TOKENS = 32  # of a program
_HEADS = 8


def write(key: Tensor, value: Tensor, cache: Tensor, slots: Tensor) -> None:
    """As `paged.write`, and the CPU waits for nothing."""
    tokens, kv_heads, head_dim = slots.shape[0], *key.shape[1:]
    if tokens == 0:
        return
    with on(cache.device):
        write_kernel[(tokens,)](
            key,
            value,
            cache,
            slots,
            key.stride(0),
            key.stride(1),
            value.stride(0),
            value.stride(1),
            cache.stride(0),
            cache.stride(1),
            cache.stride(2),
            HEADS=kv_heads,
            BLOCK_HEADS=power_of_2(kv_heads),
            D=head_dim,
            BLOCK_D=power_of_2(head_dim),
            PAGE=cache.shape[2],
        )


@triton.jit
def write_kernel(
    key,
    value,
    cache,
    slots,
    key_token,
    key_head,
    value_token,
    value_head,
    cache_block,
    cache_head,
    cache_token,
    HEADS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
):
    """One token of `write`."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    if slot >= 0:
        head, d = tl.arange(0, BLOCK_HEADS)[:, None], tl.arange(0, BLOCK_D)[None, :]
        inside = (head < HEADS) & (d < D)
        target = cache + (slot // PAGE) * cache_block + (slot % PAGE) * cache_token + head * cache_head + d
        k = tl.load(key + token * key_token + head * key_head + d, mask=inside)
        v = tl.load(value + token * value_token + head * value_head + d, mask=inside)
        tl.store(target, k, mask=inside)
        tl.store(target + D, v, mask=inside)


def read(
    cache: Tensor,
    blocks: Tensor,
    tables: Tensor,
    rotated: Tensor,
    values: Tensor,
    first: int,
    last: int,
    with_values: bool,
) -> None:
    """Rotate keys first ... last - 1 of a request by each table into its slot, and copy their values if asked to.

    cache: (blocks, Hkv, block size, 2 D), keys first; blocks: (blocks of the request,) int32, its row of the block
    table. tables: (slots, 4) int64, addresses of a table's cosines and sines, each (keys, D/2) fp32, and the first key
    and the end of the keys that need it. rotated: (slots or more, Hkv, N, D), values: (Hkv, N, D).
    """
    kv_heads, head_dim = rotated.shape[1], rotated.shape[3]
    half = head_dim // 2
    grid = (triton.cdiv(kv_heads, _HEADS), triton.cdiv(last - first, _TOKENS))
    with on(cache.device):
        read_kernel[grid](
            cache,
            blocks,
            tables,
            rotated,
            values,
            first,
            last,
            tables.shape[0],
            kv_heads,
            cache.stride(0),
            cache.stride(1),
            cache.stride(2),
            rotated.stride(0),
            rotated.stride(1),
            rotated.stride(2),
            values.stride(0),
            values.stride(1),
            HALF=half,
            BLOCK_HALF=power_of_2(half),
            BLOCK_D=power_of_2(head_dim),
            PAGE=cache.shape[2],
            TOKENS=_TOKENS,
            HEADS=_HEADS,
            WITH_VALUES=with_values,
            enable_fp_fusion=True,
        )


@triton.jit(do_not_specialize=["first", "last", "num_tables"])
def read_kernel(
    cache,
    blocks,
    tables,
    rotated,
    values,
    first,
    last,
    num_tables,
    heads,
    cache_block,
    cache_head,
    cache_token,
    rotated_slot,
    rotated_head,
    rotated_token,
    values_head,
    values_token,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    WITH_VALUES: tl.constexpr,
):
    """See `read`. Strides are in elements."""
    begin = first + tl.program_id(1) * TOKENS
    token = begin + tl.arange(0, TOKENS)
    there = token < last
    block = tl.load(blocks + token // PAGE, mask=there, other=0).to(tl.int64)
    d = tl.arange(0, BLOCK_HALF)
    real = there[:, None] & (d < HALF)[None, :]
    whole = tl.arange(0, BLOCK_D)
    token_64 = token.to(tl.int64)
    first_head = tl.program_id(0) * HEADS
    place = cache + block * cache_block + (token % PAGE) * cache_token + first_head.to(tl.int64) * cache_head
    head_target = rotated + first_head.to(tl.int64) * rotated_head + token_64 * rotated_token
    value_target = values + first_head.to(tl.int64) * values_head + token_64 * values_token
    for _ in range(first_head, tl.minimum(first_head + HEADS, heads)):
        low = tl.load(place[:, None] + d[None, :], mask=real, other=0.0).to(tl.float32)
        high = tl.load(place[:, None] + HALF + d[None, :], mask=real, other=0.0).to(tl.float32)
        target = head_target[:, None] + d[None, :]
        for slot in range(0, num_tables):
            record = tables + 4 * slot
            lowest, end = tl.load(record + 2).to(tl.int32), tl.load(record + 3).to(tl.int32)
            if (lowest < begin + TOKENS) & (end > begin):
                cos = tl.multiple_of(tl.load(record).to(tl.pointer_type(tl.float32)), 16)
                sin = tl.multiple_of(tl.load(record + 1).to(tl.pointer_type(tl.float32)), 16)
                inside = real & ((token >= lowest) & (token < end))[:, None]
                at = token_64[:, None] * HALF + d[None, :]
                c, s = tl.load(cos + at, mask=inside, other=0.0), tl.load(sin + at, mask=inside, other=0.0)
                tl.store(target, (low * c - high * s).to(rotated.dtype.element_ty), mask=inside)
                tl.store(target + HALF, (high * c + low * s).to(rotated.dtype.element_ty), mask=inside)
            target += rotated_slot
        if WITH_VALUES:
            copied = there[:, None] & (whole < 2 * HALF)[None, :]
            value = tl.load(place[:, None] + 2 * HALF + whole[None, :], mask=copied)
            tl.store(value_target[:, None] + whole[None, :], value, mask=copied)
        head_target += rotated_head
        value_target += values_head
        place += cache_head
