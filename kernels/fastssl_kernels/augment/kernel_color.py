"""Colour in registers: what happens to a pixel of a view whose neighbours do not matter.

`color_kernel` is the second of up to three launches (see `kernel.py`): it does the views whose contrast needs the mean
level of the whole view.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .parameters import COLUMNS, WORDS

ROW = tl.constexpr(WORDS)
FLAGS = tl.constexpr(COLUMNS.index("flags"))
SIGMA = tl.constexpr(COLUMNS.index("sigma"))
CODE = tl.constexpr(COLUMNS.index("code"))
COUNT = tl.constexpr(COLUMNS.index("count"))
CONTRAST_AT = tl.constexpr(COLUMNS.index("contrast_at"))
SCALE = tl.constexpr(COLUMNS.index("scale"))
SHIFT = tl.constexpr(COLUMNS.index("shift"))
CONTRAST = tl.constexpr(COLUMNS.index("contrast"))
SATURATION = tl.constexpr(COLUMNS.index("saturation"))
SIXTHS = tl.constexpr(COLUMNS.index("sixths"))


@triton.jit
def clip(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def gray_level(r, g, b):
    return r * 0.2989 + g * 0.587 + b * 0.114


@triton.jit
def turn_hue(r, g, b, sixths):
    """With h in sixths of a turn, red is max − c · clip(2 − |h − 3|), green min + c · clip(2 − |h − 2|), blue alike."""
    high = tl.maximum(tl.maximum(r, g), b)
    low = tl.minimum(tl.minimum(r, g), b)
    chroma = high - low
    inverse = 1.0 / tl.maximum(chroma, 1e-20)  # where the chroma is 0 so is every numerator
    h = tl.where(high == g, (b - r) * inverse + 2.0, (r - g) * inverse + 4.0)
    h = tl.where(high == r, (g - b) * inverse, h) + sixths
    h -= tl.floor(h * (1.0 / 6.0)) * 6.0
    return (
        high - chroma * clip(2.0 - tl.abs(h - 3.0)),
        low + chroma * clip(2.0 - tl.abs(h - 2.0)),
        low + chroma * clip(2.0 - tl.abs(h - 4.0)),
    )


@triton.jit
def saturate(r, g, b, amount, in_hsv):
    """Distance from the gray level times `amount`; in HSV from the greatest channel, and at most so that S is 1."""
    if in_hsv:
        level = tl.maximum(tl.maximum(r, g), b)
        chroma = level - tl.minimum(tl.minimum(r, g), b)
        factor = tl.minimum(level * (1.0 / tl.maximum(chroma, 1e-20)), amount)
    else:
        level = gray_level(r, g, b)
        factor = tl.zeros_like(r) + amount
    offset = level * (1.0 - factor)
    return clip(r * factor + offset), clip(g * factor + offset), clip(b * factor + offset)


@triton.jit
def adjust(r, g, b, row, flags, begin, end, pivot_r, pivot_g, pivot_b, WITH_CONTRAST: tl.constexpr):
    """The colour operations begin … end − 1 of a view, clipped after each. pivots: levels that contrast keeps."""
    code = tl.load(row + CODE).to(tl.int32)
    scale = tl.load(row + SCALE)
    shift = tl.load(row + SHIFT)
    saturation = tl.load(row + SATURATION)
    sixths = tl.load(row + SIXTHS)
    if WITH_CONTRAST:
        contrast = tl.load(row + CONTRAST)
    for slot in range(begin, end):
        which = (code >> (2 * slot)) & 3
        if which == 3:
            r, g, b = turn_hue(r, g, b, sixths)
        elif which == 2:
            r, g, b = saturate(r, g, b, saturation, (flags & 32) != 0)
        else:
            # v ← clip(factor · v + offset)
            factor, offset_r, offset_g, offset_b = scale, shift, shift, shift
            if WITH_CONTRAST:  # noqa: SIM102 (this is decided when compiling, the next when running)
                if which == 1:
                    factor = contrast
                    offset_r = pivot_r * (1.0 - contrast)
                    offset_g = pivot_g * (1.0 - contrast)
                    offset_b = pivot_b * (1.0 - contrast)
            r = clip(r * factor + offset_r)
            g = clip(g * factor + offset_g)
            b = clip(b * factor + offset_b)
    return r, g, b


@triton.jit
def remove_color(r, g, b, gray):
    level = gray_level(r, g, b)
    return tl.where(gray, level, r), tl.where(gray, level, g), tl.where(gray, level, b)


@triton.jit
def finish(x, flags, mean, inverse_std):
    """Solarize, invert, normalise one channel."""
    x = tl.where((flags & 4) != 0, tl.minimum(x, 1.0 - x), x)
    x = tl.where((flags & 8) != 0, 1.0 - x, x)
    return (x - mean) * inverse_std


@triton.jit
def store_planes(planes, o, m, r, g, b, S: tl.constexpr):
    """Pixels `o` of one view kept as three planes."""
    tl.store(planes + o, r.to(planes.dtype.element_ty), mask=m)
    tl.store(planes + S * S + o, g.to(planes.dtype.element_ty), mask=m)
    tl.store(planes + 2 * S * S + o, b.to(planes.dtype.element_ty), mask=m)


@triton.jit
def store_view(
    out, o, m, r, g, b, flags, mean0, mean1, mean2, std0, std1, std2, S: tl.constexpr, CHANNELS_LAST: tl.constexpr
):
    """Pixels `o` of one finished view; std0 … std2 are inverses."""
    r = finish(r, flags, mean0, std0)
    g = finish(g, flags, mean1, std1)
    b = finish(b, flags, mean2, std2)
    if CHANNELS_LAST:
        p = out + 3 * o
        tl.store(p, r.to(out.dtype.element_ty), mask=m)
        tl.store(p + 1, g.to(out.dtype.element_ty), mask=m)
        tl.store(p + 2, b.to(out.dtype.element_ty), mask=m)
    else:
        store_planes(out, o, m, r, g, b, S)


@triton.jit
def view_mean(partial, PARTS: tl.constexpr, PARTS_POWER: tl.constexpr, S: tl.constexpr):
    """Mean of one channel of a view from the sums of its blocks."""
    part = tl.arange(0, PARTS_POWER)
    return tl.sum(tl.load(partial + part, mask=part < PARTS, other=0.0), 0) * (1.0 / (S * S))


@triton.jit
def color_kernel(
    parameters,
    partial,
    work,
    out,
    mean0,
    mean1,
    mean2,
    std0,
    std1,
    std2,
    S: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_POWER: tl.constexpr,
    BLOCK: tl.constexpr,
    BLUR: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Contrast and what follows it, of BLOCK pixels of a view; into `out`, or back to `work` if a blur comes."""
    blocks: tl.constexpr = (S * S + BLOCK - 1) // BLOCK
    view = tl.program_id(0) // blocks
    row = parameters + view * ROW
    count = tl.load(row + COUNT).to(tl.int32)
    begin = tl.load(row + CONTRAST_AT).to(tl.int32)
    if begin < count:
        flags = tl.load(row + FLAGS).to(tl.int32)
        sums = partial + 3 * view * PARTS
        pivot_r = view_mean(sums, PARTS, PARTS_POWER, S)
        pivot_g = view_mean(sums + PARTS, PARTS, PARTS_POWER, S)
        pivot_b = view_mean(sums + 2 * PARTS, PARTS, PARTS_POWER, S)
        if (flags & 32) == 0:
            pivot_r = gray_level(pivot_r, pivot_g, pivot_b)
            pivot_g = pivot_r
            pivot_b = pivot_r
        o = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
        m = o < S * S
        place = tl.cast(view, tl.int64) * (3 * S * S)
        planes = work + place
        r = tl.load(planes + o, mask=m, other=0.0).to(tl.float32)
        g = tl.load(planes + S * S + o, mask=m, other=0.0).to(tl.float32)
        b = tl.load(planes + 2 * S * S + o, mask=m, other=0.0).to(tl.float32)
        r, g, b = adjust(r, g, b, row, flags, begin, count, pivot_r, pivot_g, pivot_b, True)
        r, g, b = remove_color(r, g, b, (flags & 2) != 0)
        blurred = False
        if BLUR:
            blurred = tl.load(row + SIGMA) > 0
        if blurred:
            store_planes(planes, o, m, r, g, b, S)
        else:
            store_view(out + place, o, m, r, g, b, flags, mean0, mean1, mean2, std0, std1, std2, S, CHANNELS_LAST)
