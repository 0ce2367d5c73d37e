"""Blur of the views that have one: out = G · x · Gᵀ, with bands of weights made in registers; see `kernel.py`."""

from __future__ import annotations

import triton
import triton.language as tl

from .kernel_color import FLAGS, ROW, SIGMA, clip, store_planes, store_view

# Starts of rows of a chunk are multiples of this: 128-bit loads where the view's size allows them.
ALIGNED = tl.constexpr(16)
# exp(−½ · 7.5²) = 6e-13: no sum in float32 can see it.
FARTHEST = tl.constexpr(7.5)
LOG2E_HALF = tl.constexpr(0.5 * 1.4426950408889634)


@triton.jit
def tap(distance, inverse, HALF: tl.constexpr):
    """Gaussian weight, 1 in the middle; inverse = sqrt(log2(e) / 2) / σ."""
    scaled = distance.to(tl.float32) * inverse
    return tl.where(distance <= HALF, tl.exp2(-scaled * scaled), 0.0)


@triton.jit
def gaussian_weight(i, k, inverse, S: tl.constexpr, HALF: tl.constexpr):
    """Weight of pixel k in pixel i: directly, and where the reflected borders show k again."""
    far = 2 * (S - 1) - k
    weight = tap(tl.abs(k - i), inverse, HALF)
    weight += tl.where(k > 0, tap(k + i, inverse, HALF), 0.0)
    return weight + tl.where(k < S - 1, tap(far - i, inverse, HALF), 0.0)


@triton.jit
def beyond(distance, whole, edge):
    """Sum of a box's weights at more than `distance` from its middle, on one side."""
    return tl.maximum(whole - distance, 0).to(tl.float32) + tl.where(distance <= whole, edge, 0.0)


@triton.jit
def box_weight(i, k, whole, edge, S: tl.constexpr):
    """1 up to `whole` pixels away, `edge` at the next one; the first and last pixel stand for all beyond them."""
    distance = tl.abs(k - i)
    weight = tl.where(distance <= whole, 1.0, tl.where(distance == whole + 1, edge, 0.0))
    weight += tl.where(k == 0, beyond(i, whole, edge), 0.0)
    return weight + tl.where(k == S - 1, beyond(S - 1 - i, whole, edge), 0.0)


@triton.jit
def box_widths(radius):
    """PIL's box of variance radius² / 3: whole pixels on each side, weight of the next one."""
    variance = radius * radius * (1.0 / 3.0)
    whole = tl.floor((tl.sqrt_rn(12.0 * variance + 1.0) - 1.0) * 0.5)
    edge = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance)
    edge = tl.div_rn(edge, 6.0 * (variance - (whole + 1.0) * (whole + 1.0)))
    return whole.to(tl.int32), edge


@triton.jit
def blur_weight(i, k, inverse, whole, edge, PIL: tl.constexpr, S: tl.constexpr, HALF: tl.constexpr):
    if PIL:
        weight = box_weight(i, k, whole, edge, S)
    else:
        weight = gaussian_weight(i, k, inverse, S, HALF)
    return tl.where(k < S, weight, 0.0)


@triton.jit
def blur_kernel(
    parameters,
    source,
    planes,
    out,
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
    HALF: tl.constexpr,
    PIL: tl.constexpr,
    LAST: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """BLOCK × BLOCK pixels of a blurred view, from `source` to `planes`, or finished to `out` (LAST)."""
    side: tl.constexpr = (S + BLOCK - 1) // BLOCK
    view = tl.program_id(0) // (side * side)
    row = parameters + view * ROW
    sigma = tl.load(row + SIGMA)
    if sigma > 0:
        inverse, whole, edge = sigma, 0, sigma
        if PIL:
            whole, edge = box_widths(sigma)
            reach = whole + 1
        else:
            # Below a hundredth of a pixel no neighbour counts, and the inverse must stay finite.
            inverse = tl.div_rn(tl.sqrt_rn(tl.zeros_like(sigma) + LOG2E_HALF), tl.maximum(sigma, 0.01))
            reach = tl.minimum(sigma * FARTHEST, HALF * 1.0).to(tl.int32)
        top = tl.program_id(0) % (side * side) // side * BLOCK
        left = tl.program_id(0) % side * BLOCK
        y, x = top + tl.arange(0, BLOCK), left + tl.arange(0, BLOCK)
        i_y, i_x = tl.minimum(y, S - 1), tl.minimum(x, S - 1)
        first_y, stop_y = tl.maximum(top - reach, 0), tl.minimum(top + BLOCK + reach, S)
        first_x = tl.maximum(left - reach, 0) // ALIGNED * ALIGNED
        stop_x = tl.minimum(left + BLOCK + reach, S)
        place = tl.cast(view, tl.int64) * (3 * S * S)
        r = tl.zeros((BLOCK, BLOCK), tl.float32)
        g = tl.zeros((BLOCK, BLOCK), tl.float32)
        b = tl.zeros((BLOCK, BLOCK), tl.float32)
        total_y = tl.zeros((BLOCK,), tl.float32)
        for begin_y in range(first_y, stop_y, ROWS):
            k_y = begin_y + tl.arange(0, ROWS)
            row_r = tl.zeros((ROWS, BLOCK), tl.float32)
            row_g = tl.zeros((ROWS, BLOCK), tl.float32)
            row_b = tl.zeros((ROWS, BLOCK), tl.float32)
            total_x = tl.zeros((BLOCK,), tl.float32)
            for begin_x in range(first_x, stop_x, K):
                k_x = begin_x + tl.arange(0, K)
                weight = blur_weight(i_x[None, :], k_x[:, None], inverse, whole, edge, PIL, S, HALF).to(OPERAND)
                total_x += tl.sum(weight.to(tl.float32), 0)
                m = (k_y < stop_y)[:, None] & (k_x < S)[None, :]
                p = source + place + k_y[:, None] * S + k_x[None, :]
                source_r = tl.load(p, mask=m, other=0.0)
                source_g = tl.load(p + S * S, mask=m, other=0.0)
                source_b = tl.load(p + 2 * S * S, mask=m, other=0.0)
                row_r = tl.dot(source_r, weight, row_r, input_precision=PRECISION)
                row_g = tl.dot(source_g, weight, row_g, input_precision=PRECISION)
                row_b = tl.dot(source_b, weight, row_b, input_precision=PRECISION)
            weight = blur_weight(i_y[:, None], k_y[None, :], inverse, whole, edge, PIL, S, HALF)
            weight = tl.where((k_y < stop_y)[None, :], weight, 0.0).to(OPERAND)
            total_y += tl.sum(weight.to(tl.float32), 1)
            scale_x = (1.0 / total_x)[None, :]
            r = tl.dot(weight, (row_r * scale_x).to(OPERAND), r, input_precision=PRECISION)
            g = tl.dot(weight, (row_g * scale_x).to(OPERAND), g, input_precision=PRECISION)
            b = tl.dot(weight, (row_b * scale_x).to(OPERAND), b, input_precision=PRECISION)
        inverse_y = (1.0 / total_y)[:, None]
        r, g, b = clip(r * inverse_y), clip(g * inverse_y), clip(b * inverse_y)
        m = (y < S)[:, None] & (x < S)[None, :]
        o = y[:, None] * S + x[None, :]
        if LAST:
            flags = tl.load(row + FLAGS).to(tl.int32)
            store_view(out + place, o, m, r, g, b, flags, mean0, mean1, mean2, std0, std1, std2, S, CHANNELS_LAST)
        else:
            store_planes(planes + place, o, m, r, g, b, S)
