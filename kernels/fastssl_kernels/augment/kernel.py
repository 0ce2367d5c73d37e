"""From decoded bytes to views: the launch that resizes, and the way through the others.

    resize_kernel    every view: crop, resize, mirror; the colour operations that come before contrast
    color_kernel     views with contrast: contrast, which needs the view's mean level, and what follows it
    blur_kernel      blurred views: both axes at once (three launches for PIL's three boxes)

A view goes to `out` from the first of them that can finish it; until then it lies in `work` as three planes. The others
leave at once: which views need what is read from their row of parameters, on the device.

Resampling is two small products, out = A · crop · Bᵀ, with bands of filter weights that are made in registers where
they are needed. A program owns BLOCK × BLOCK pixels and walks through the window of the crop that they see, ROWS ×
K pixels at a time: bytes times weights along the rows first, then along the columns. Weights are divided by their sum
after the products: the sum of the very numbers that were multiplied, so that a rounded weight shifts no level.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .kernel_color import (
    CONTRAST_AT,
    COUNT,
    FLAGS,
    ROW,
    SIGMA,
    adjust,
    clip,
    remove_color,
    store_planes,
    store_view,
)
from .parameters import COLUMNS

TOP = tl.constexpr(COLUMNS.index("top"))
LEFT = tl.constexpr(COLUMNS.index("left"))
HEIGHT = tl.constexpr(COLUMNS.index("height"))
WIDTH = tl.constexpr(COLUMNS.index("width"))
IMAGE = tl.constexpr(COLUMNS.index("image"))


@triton.jit
def filter_weight(i, k, scale, inverse, SUPPORT: tl.constexpr):
    """Weight of pixel k of the crop in output pixel i: the triangle (SUPPORT 1) or Keys' cubic with a = −0.5 (2)."""
    x = tl.abs(k.to(tl.float32) - ((i.to(tl.float32) + 0.5) * scale - 0.5)) * inverse
    if SUPPORT == 1:
        weight = tl.maximum(1.0 - x, 0.0)
    else:
        near = (1.5 * x - 2.5) * x * x + 1.0
        far = ((2.5 - 0.5 * x) * x - 4.0) * x + 2.0
        weight = tl.where(x < 1.0, near, tl.where(x < 2.0, far, 0.0))
    return weight * inverse  # sums to about 1, which suits 16 bits


@triton.jit
def window(low, high, scale, wide, length, SUPPORT: tl.constexpr):
    """First and one past the last pixel of the crop that output pixels low … high see."""
    first = tl.floor((low.to(tl.float32) + 0.5) * scale - SUPPORT * wide + 0.5)
    stop = tl.floor((high.to(tl.float32) + 0.5) * scale + SUPPORT * wide + 0.5)
    return tl.maximum(first, 0.0).to(tl.int32), tl.minimum(stop, length).to(tl.int32)


@triton.jit
def resize_kernel(
    parameters,
    pixels,
    image_bytes,
    image_width,
    out,
    work,
    partial,
    mean0,
    mean1,
    mean2,
    std0,
    std1,
    std2,
    S: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    K: tl.constexpr,
    SUPPORT: tl.constexpr,
    TABLE: tl.constexpr,
    BLUR: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program a block of a view. `pixels`: a table [N, 2] of address and width (TABLE), or images of one size.

    partial [M, 3, blocks]: sums of the channels, of views with contrast.
    """
    side: tl.constexpr = (S + BLOCK - 1) // BLOCK
    view = tl.program_id(0) // (side * side)
    row = parameters + view * ROW
    height, width = tl.load(row + HEIGHT), tl.load(row + WIDTH)
    flags = tl.load(row + FLAGS).to(tl.int32)
    image = tl.load(row + IMAGE).to(tl.int64)
    if TABLE:
        origin = tl.load(pixels + 2 * image).to(tl.pointer_type(tl.uint8), bitcast=True)
        pitch = 3 * tl.load(pixels + 2 * image + 1)
    else:
        origin = pixels + image * image_bytes
        pitch = 3 * tl.cast(image_width, tl.int64)
    origin += tl.load(row + TOP).to(tl.int64) * pitch + 3 * tl.load(row + LEFT).to(tl.int64)

    top = tl.program_id(0) % (side * side) // side * BLOCK
    left = tl.program_id(0) % side * BLOCK
    y, x = top + tl.arange(0, BLOCK), left + tl.arange(0, BLOCK)
    # Pixels beyond the view see what its last ones see; they are not stored.
    i_y, i_x = tl.minimum(y, S - 1), tl.minimum(x, S - 1)
    low_x, high_x = left, tl.minimum(left + BLOCK, S) - 1
    if (flags & 1) != 0:
        i_x = S - 1 - i_x
        low_x, high_x = S - 1 - high_x, S - 1 - low_x
    scale_y, scale_x = tl.div_rn(height, S * 1.0), tl.div_rn(width, S * 1.0)
    wide_y, wide_x = tl.maximum(scale_y, 1.0), tl.maximum(scale_x, 1.0)
    inverse_y, inverse_x = tl.div_rn(1.0, wide_y), tl.div_rn(1.0, wide_x)
    first_y, stop_y = window(top, tl.minimum(top + BLOCK, S) - 1, scale_y, wide_y, height, SUPPORT)
    first_x, stop_x = window(low_x, high_x, scale_x, wide_x, width, SUPPORT)

    r = tl.zeros((BLOCK, BLOCK), tl.float32)
    g = tl.zeros((BLOCK, BLOCK), tl.float32)
    b = tl.zeros((BLOCK, BLOCK), tl.float32)
    total_y = tl.zeros((BLOCK,), tl.float32)
    for begin_y in range(first_y, stop_y, ROWS):
        k_y = begin_y + tl.arange(0, ROWS)
        p_row = origin + k_y.to(tl.int64)[:, None] * pitch
        row_r = tl.zeros((ROWS, BLOCK), tl.float32)
        row_g = tl.zeros((ROWS, BLOCK), tl.float32)
        row_b = tl.zeros((ROWS, BLOCK), tl.float32)
        total_x = tl.zeros((BLOCK,), tl.float32)
        for begin_x in range(first_x, stop_x, K):
            k_x = begin_x + tl.arange(0, K)
            weight = filter_weight(i_x[None, :], k_x[:, None], scale_x, inverse_x, SUPPORT)
            weight = tl.where((k_x < stop_x)[:, None], weight, 0.0).to(OPERAND)
            total_x += tl.sum(weight.to(tl.float32), 0)
            m = (k_y < stop_y)[:, None] & (k_x < stop_x)[None, :]
            p = p_row + 3 * k_x[None, :]
            source_r = tl.load(p, mask=m, other=0).to(OPERAND)
            source_g = tl.load(p + 1, mask=m, other=0).to(OPERAND)
            source_b = tl.load(p + 2, mask=m, other=0).to(OPERAND)
            row_r = tl.dot(source_r, weight, row_r, input_precision=PRECISION)
            row_g = tl.dot(source_g, weight, row_g, input_precision=PRECISION)
            row_b = tl.dot(source_b, weight, row_b, input_precision=PRECISION)
        weight = filter_weight(i_y[:, None], k_y[None, :], scale_y, inverse_y, SUPPORT)
        weight = tl.where((k_y < stop_y)[None, :], weight, 0.0).to(OPERAND)
        total_y += tl.sum(weight.to(tl.float32), 1)
        even = (1.0 / total_x)[None, :]
        r = tl.dot(weight, (row_r * even).to(OPERAND), r, input_precision=PRECISION)
        g = tl.dot(weight, (row_g * even).to(OPERAND), g, input_precision=PRECISION)
        b = tl.dot(weight, (row_b * even).to(OPERAND), b, input_precision=PRECISION)
    even = (1.0 / (255.0 * total_y))[:, None]
    r, g, b = clip(r * even), clip(g * even), clip(b * even)

    count = tl.load(row + COUNT).to(tl.int32)
    contrast_at = tl.load(row + CONTRAST_AT).to(tl.int32)
    r, g, b = remove_color(r, g, b, (flags & 16) != 0)
    r, g, b = adjust(r, g, b, row, flags, 0, contrast_at, 0.0, 0.0, 0.0, False)
    m = (y < S)[:, None] & (x < S)[None, :]
    o = y[:, None] * S + x[None, :]
    place = tl.cast(view, tl.int64) * (3 * S * S)
    waits = contrast_at < count
    if waits:
        sums = partial + (3 * view * side * side + tl.program_id(0) % (side * side))
        tl.store(sums, tl.sum(tl.sum(tl.where(m, r, 0.0), 1), 0))
        tl.store(sums + side * side, tl.sum(tl.sum(tl.where(m, g, 0.0), 1), 0))
        tl.store(sums + 2 * side * side, tl.sum(tl.sum(tl.where(m, b, 0.0), 1), 0))
    else:
        r, g, b = remove_color(r, g, b, (flags & 2) != 0)
    if BLUR:
        waits = waits | (tl.load(row + SIGMA) > 0)
    if waits:
        store_planes(work + place, o, m, r, g, b, S)
    else:
        store_view(out + place, o, m, r, g, b, flags, mean0, mean1, mean2, std0, std1, std2, S, CHANNELS_LAST)
