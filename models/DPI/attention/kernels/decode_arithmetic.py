"""The arithmetic of a program that decodes, wherever its keys lie: rotation, its running softmax, the merge of all.

Heads are the last dimension of every block, so that products have the keys in the rows of the tensor cores.
"""

import triton
import triton.language as tl

from models.DPI.attention.kernels.softmax import sink_of


@triton.jit
def load_row(table, row, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr):
    """A row of a table, (1, D/2, 1)."""
    column = tl.arange(0, BLOCK_HALF)
    return tl.load(table + row * HALF + column, mask=column < HALF, other=0.0)[None, :, None]


@triton.jit
def rotate(low, high, c, s):
    """Halves of heads, rotated by cosines and sines."""
    return low * c - high * s, high * c + low * s


@triton.jit
def rotate_back(low, high, c, s):
    """Halves of heads, rotated the other way."""
    return low * c + high * s, high * c - low * s


@triton.jit
def score(k_low, k_high, c_key, s_key, q_low, q_high):
    """Products (warps, keys, heads) of a tile's keys, rotated here, with the rotated queries."""
    x, y = k_low.to(tl.float32), k_high.to(tl.float32)
    products = tl.dot((x * c_key - y * s_key).to(k_low.dtype), q_low)
    return tl.dot((y * c_key + x * s_key).to(k_high.dtype), q_high, products)


@triton.jit
def accumulate(logits, value, acc, top, total):
    """Add a tile of logits (warps, keys, heads) and its values (warps, D, keys) to the warps' running softmaxes."""
    new_top = tl.maximum(top, tl.max(logits, 1))
    p = tl.exp2(logits - new_top[:, None, :])
    shrink = tl.exp2(top - new_top)[:, None, :]
    total = total * shrink + p
    acc = tl.dot(value, p.to(value.dtype), acc * shrink)
    return acc, new_top, total


@triton.jit
def merge_warps(acc, top, total, BLOCK_D: tl.constexpr, BLOCK_GROUP: tl.constexpr, WARPS: tl.constexpr):
    """The softmax over the keys of all warps: the weighted mean of values, the base-2 logarithm of the weights' sum."""
    whole = tl.max(top, 0)
    # Divided: the compiler would fuse a product with the sum in each thread from its own side, and their copies of the
    # sum would differ by a rounding. A warp that saw no key has the sum 0, and its divisor stays finite.
    behind = tl.minimum(whole[None, :] - top, 126.0)
    total = tl.sum(tl.math.div_rn(tl.sum(total, 1), tl.exp2(behind)), 0)
    weight = tl.exp2(top - whole[None, :]) / tl.where(total > 0, total, 1.0)[None, :]
    # Splitting in two moves the warps' parts once; a sum over the axis of warps would move them twice.
    tl.static_assert(WARPS == 4)
    parts = tl.permute(acc * weight[:, None, :], 1, 2, 0).reshape(BLOCK_D, BLOCK_GROUP, 2, 2)
    one, other = tl.split(parts)
    one, other = tl.split(one + other)
    return one + other, whole + tl.log2(total)


@triton.jit
def merge(
    parts,
    log_totals,
    out,
    out_head,
    lse,
    sinks,
    splits,
    GROUP: tl.constexpr,
    BLOCK_MEMBERS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The softmax over all parts of a key head. A thread sums its own components, and has its own copies of the sums of
    weights: none waits for another.
    """
    d = tl.arange(0, BLOCK_D)[:, None]
    member = tl.arange(0, BLOCK_MEMBERS)[None, :] + d * 0
    real = (member < GROUP) & (d < HEAD_DIM)
    top = tl.full([BLOCK_D, BLOCK_MEMBERS], -1.0e30, tl.float32)
    total = tl.zeros([BLOCK_D, BLOCK_MEMBERS], tl.float32)
    if sinks is not None:  # a part that comes first and has no value
        sink = sink_of(sinks, tl.minimum(member, GROUP - 1))
        top = tl.maximum(top, sink)
        total = tl.exp2(sink - top)
    acc = tl.zeros([BLOCK_D, BLOCK_MEMBERS], tl.float32)
    # Parts that are loaded together: as many as registers hold.
    AT_ONCE: tl.constexpr = max(1, min(16, 8192 // (BLOCK_D * BLOCK_MEMBERS)))
    for begin in tl.range(0, splits, AT_ONCE):
        ones, means = (), ()
        for i in tl.static_range(AT_ONCE):
            part = begin + i
            there = member < tl.minimum(splits - part, 1) * GROUP
            place = log_totals + part * BLOCK_MEMBERS + member
            one = tl.load(place, mask=there, other=float("-inf"), cache_modifier=".cg")
            place = parts + (part * BLOCK_D + d) * BLOCK_MEMBERS + member
            mean = tl.load(place, mask=there & real, other=0.0, cache_modifier=".cg")
            ones += (one,)  # type: ignore[assignment]
            means += (mean,)  # type: ignore[assignment]
        new_top = top
        for i in tl.static_range(AT_ONCE):
            new_top = tl.maximum(new_top, ones[i])
        shrink = tl.exp2(top - new_top)
        total, acc, top = total * shrink, acc * shrink, new_top
        for i in tl.static_range(AT_ONCE):
            weight = tl.exp2(ones[i] - top)
            total += weight
            acc += weight * means[i]
    acc = acc / tl.where(total > 0, total, 1.0)
    tl.store(out + member.to(tl.int64) * out_head + d, acc.to(out.dtype.element_ty), mask=real)
    if lse is not None:
        tl.store(lse + member, (top + tl.log2(total)) * 0.6931471805599453, mask=real & (d == 0))
