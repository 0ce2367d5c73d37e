"""Tiles of rows in padded layout, in Triton: what operations with products load and multiply.

A row is padded to P numbers, a power of two. Widths above BD go in pieces of BD.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_tile(z, start, stop, P: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr):
    """Rows start..start + ROWS, the first WIDTH numbers of each; with MASKED, zeros from row `stop` on."""
    row = tl.arange(0, ROWS)
    pointers = z + tl.cast(start, tl.int64) * P + (row[:, None] * P + tl.arange(0, WIDTH)[None, :])
    if MASKED:
        return tl.load(pointers, mask=(start + row < stop)[:, None], other=0.0)
    return tl.load(pointers)


@triton.jit
def more_pieces(
    cosine,
    left,
    left_start,
    right,
    right_start,
    right_stop,
    P: tl.constexpr,
    BD: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add to cosines [left, right] the products of all pieces after the first."""
    if P > BD:
        # Not unrolled: the pipeline then holds the pieces of one step, whatever the width.
        for piece in range(BD, P, BD):
            a = load_tile(left + piece, left_start, 0, P, cosine.shape[0], BD, False)
            b = load_tile(right + piece, right_start, right_stop, P, cosine.shape[1], BD, MASKED)
            cosine = tl.dot(a, tl.trans(b), cosine, input_precision=PRECISION)
    return cosine
