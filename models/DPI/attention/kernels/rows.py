"""Blocks of a tensor's rows, read by a kernel: by the copy engine's descriptors, or by addresses where there is none.

The compiler could write addresses for descriptors itself, but it would not know that strides are multiples of 16
bytes, and without that nothing is read ahead into shared memory.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from models.DPI.attention.kernels.launching import descriptor


def rows_of(x: Tensor, rows: int, width: int, by_descriptor: bool) -> "TensorDescriptor | tuple[Tensor | int, ...]":
    """What `load_rows` reads blocks of so many rows and components of x (..., N, D) by; x is `readable`.

    A descriptor's blocks begin at components that are multiples of 8. Addresses: the tensor, the strides of all
    dimensions but the last, and the number of rows.
    """
    if by_descriptor:
        found: TensorDescriptor = descriptor(x, [1] * (x.ndim - 2) + [rows, width])
        return found
    return (x, *x.stride()[:-1], x.shape[-2])


@triton.jit
def load_rows(source, place, first, column, ROWS: tl.constexpr, WIDTH: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Rows first ... first + ROWS - 1, components column ... column + WIDTH - 1: (ROWS, WIDTH), 0 beyond the tensor.

    source: of `rows_of`. place: a tuple, where in the dimensions before the rows.
    """
    if isinstance(source, tl.core.tensor_descriptor_base):
        if len(place) == 1:
            block = source.load([place[0], first, column])
        else:
            block = source.load([place[0], place[1], first, column])
        block = block.reshape(ROWS, WIDTH)
    else:
        row, component = tl.arange(0, ROWS)[:, None], tl.arange(0, WIDTH)[None, :]
        block = _load_from_addresses(source, place, first, column, row, component, HEAD_DIM)
    return block


@triton.jit
def load_rows_of_warps(
    source,
    place,
    first,
    column,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WARPS: tl.constexpr,
):
    """The same as (WARPS, ROWS / WARPS, WIDTH)."""
    if isinstance(source, tl.core.tensor_descriptor_base):
        block = load_rows(source, place, first, column, ROWS, WIDTH, HEAD_DIM).reshape(WARPS, ROWS // WARPS, WIDTH)
    else:
        row = (tl.arange(0, WARPS) * (ROWS // WARPS))[:, None, None] + tl.arange(0, ROWS // WARPS)[None, :, None]
        component = tl.arange(0, WIDTH)[None, None, :]
        block = _load_from_addresses(source, place, first, column, row, component, HEAD_DIM)
    return block


@triton.jit
def load_columns_of_warps(
    source,
    place,
    first,
    column,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WARPS: tl.constexpr,
):
    """The same as (WARPS, WIDTH, ROWS / WARPS). From addresses it is read so: the compiler turns no block over that is
    on its way to shared memory.
    """
    if isinstance(source, tl.core.tensor_descriptor_base):
        block = load_rows_of_warps(source, place, first, column, ROWS, WIDTH, HEAD_DIM, WARPS)
        block = tl.permute(block, 0, 2, 1)
    else:
        row = (tl.arange(0, WARPS) * (ROWS // WARPS))[:, None, None] + tl.arange(0, ROWS // WARPS)[None, None, :]
        component = tl.arange(0, WIDTH)[None, :, None]
        block = _load_from_addresses(source, place, first, column, row, component, HEAD_DIM)
    return block


@triton.jit
def _load_from_addresses(source, place, first, column, row, component, HEAD_DIM: tl.constexpr):
    """The block whose rows and components, counted from its first ones, are `row` and `component`."""
    base, step = source[0], tl.multiple_of(source[len(place) + 1], 8)
    for i in tl.static_range(len(place)):
        base += place[i].to(tl.int64) * tl.multiple_of(source[1 + i], 8)
    base += first.to(tl.int64) * step + column
    inside = (first + row < source[len(place) + 2]) & (column + component < HEAD_DIM)
    return tl.load(base + row * step + component, mask=inside, other=0.0)
