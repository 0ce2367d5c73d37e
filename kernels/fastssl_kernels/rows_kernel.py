"""Rows of length one, in Triton: what operations on cosines begin with."""

from __future__ import annotations

import triton
import triton.language as tl


def unit_rows_per_program(width: int) -> int:
    """Rows of padded `width` that one program of four warps normalises: 32 numbers a thread."""
    return max(1, 4096 // width)


@triton.jit
def load_unit_rows(x, factor, row, real, D: tl.constexpr, P: tl.constexpr, NORMALIZE: tl.constexpr):
    """Rows of x in fp32, divided by their length: as exact as the input, unlike those that products use."""
    column = tl.arange(0, P)
    pointers = x + tl.cast(row, tl.int64)[:, None] * D + column[None, :]
    value = tl.load(pointers, mask=real[:, None] & (column < D)[None, :], other=0.0).to(tl.float32)
    if NORMALIZE:
        value *= tl.load(factor + row, mask=real, other=0.0)[:, None]
    return value


@triton.jit
def unit_rows_kernel(
    x,
    z,
    factor,
    total,
    batch,
    padded,
    D: tl.constexpr,
    P: tl.constexpr,
    NORMALIZE: tl.constexpr,
    SMALLEST: tl.constexpr,
    ROWS: tl.constexpr,
):
    """z = x / ‖x‖ in padded layout and the dtype of products; factor = 1 / ‖x‖, or 0 for rows shorter than SMALLEST."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    image = row % padded
    real = (row < total) & (image < batch)
    source = tl.cast(row // padded * batch + image, tl.int64)
    column = tl.arange(0, P)
    inside = real[:, None] & (column < D)[None, :]
    value = tl.load(x + source[:, None] * D + column[None, :], mask=inside, other=0.0).to(tl.float32)
    if NORMALIZE:
        square = tl.sum(value * value, 1)
        usable = square > SMALLEST * SMALLEST
        inverse = tl.where(usable, tl.div_rn(1.0, tl.sqrt_rn(tl.where(usable, square, 1.0))), 0.0)
        value *= inverse[:, None]
        tl.store(factor + source, inverse, mask=real)
    target = tl.cast(row, tl.int64)[:, None] * P + column[None, :]
    tl.store(z + target, value.to(z.dtype.element_ty), mask=(row < total)[:, None])
