"""BYOL's loss: one launch forward, one backward, each a single pass over prediction and target.

    forward    p·p, z·z, p·z of each row → loss 2 − 2 cos; cos, 1/‖p‖, 1/‖z‖ are kept
    backward   dp = −2 g (ẑ − cos p̂)/‖p‖ = a z + b p,   a = −2 g/(‖p‖‖z‖),   b = 2 g cos/‖p‖²

A program owns ROWS rows and takes their columns BLOCK at a time; the width is a compile-time constant: rows of a
multiple of 16 bytes are read 128 bits at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile(p, o_row, o_column, rows, WIDTH: tl.constexpr, WIDE: tl.constexpr):
    m = (o_row < rows)[:, None] & (o_column < WIDTH)[None, :]
    return tl.load(p + o_row.to(tl.int64)[:, None] * WIDTH + o_column[None, :], mask=m, other=0).to(WIDE)


@triton.jit
def inverse_length(squares, SMALLEST_SQUARE: tl.constexpr):
    zero = squares < SMALLEST_SQUARE
    return tl.where(zero, 0, tl.rsqrt(tl.where(zero, 1, squares)))


@triton.jit
def byol_fwd_kernel(
    prediction,
    target,
    losses,
    statistics,
    rows,
    WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
    SMALLEST_SQUARE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`losses` [rows] and `statistics` [3, rows]: cos, 1/‖p‖, 1/‖z‖."""
    o_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    b_pp = tl.zeros((ROWS, BLOCK), WIDE)
    b_zz = tl.zeros((ROWS, BLOCK), WIDE)
    b_pz = tl.zeros((ROWS, BLOCK), WIDE)
    for start in range(0, WIDTH, BLOCK):
        o_column = start + tl.arange(0, BLOCK)
        b_p = tile(prediction, o_row, o_column, rows, WIDTH, WIDE)
        b_z = tile(target, o_row, o_column, rows, WIDTH, WIDE)
        b_pp += b_p * b_p
        b_zz += b_z * b_z
        b_pz += b_p * b_z
    p_inverse = inverse_length(tl.sum(b_pp, 1), SMALLEST_SQUARE)
    z_inverse = inverse_length(tl.sum(b_zz, 1), SMALLEST_SQUARE)
    cosine = tl.sum(b_pz, 1) * p_inverse * z_inverse
    m = o_row < rows
    tl.store(losses + o_row, 2 - 2 * cosine, mask=m)
    tl.store(statistics + o_row, cosine, mask=m)
    tl.store(statistics + rows + o_row, p_inverse, mask=m)
    tl.store(statistics + 2 * rows + o_row, z_inverse, mask=m)


@triton.jit
def byol_bwd_kernel(
    grad,
    prediction,
    target,
    statistics,
    result,
    rows,
    WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`result` [rows, WIDTH] ← gradient of the prediction, for the gradients `grad` [rows] of the losses."""
    o_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m = o_row < rows
    doubled = 2 * tl.load(grad + o_row, mask=m, other=0)
    cosine = tl.load(statistics + o_row, mask=m, other=0)
    p_inverse = tl.load(statistics + rows + o_row, mask=m, other=0)
    z_inverse = tl.load(statistics + 2 * rows + o_row, mask=m, other=0)
    along_target = -doubled * p_inverse * z_inverse
    along_prediction = doubled * cosine * p_inverse * p_inverse
    for start in range(0, WIDTH, BLOCK):
        o_column = start + tl.arange(0, BLOCK)
        b_p = tile(prediction, o_row, o_column, rows, WIDTH, WIDE)
        b_z = tile(target, o_row, o_column, rows, WIDTH, WIDE)
        b_dp = along_target[:, None] * b_z + along_prediction[:, None] * b_p
        at = result + o_row.to(tl.int64)[:, None] * WIDTH + o_column[None, :]
        tl.store(at, b_dp.to(result.dtype.element_ty), mask=m[:, None] & (o_column < WIDTH)[None, :])
