"""Rotation, noise, Sobel and cutout of finished views, and their normalisation: a launch that most recipes do without.

The views come as planes of levels in [0, 1] and go to `out`; see `study.py` for what is done, and in which order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .kernel_color import clip, gray_level, store_planes
from .study import STUDY_COLUMNS, STUDY_WORDS

STUDY_ROW = tl.constexpr(STUDY_WORDS)
TURNS = tl.constexpr(STUDY_COLUMNS.index("turns"))
SOBEL = tl.constexpr(STUDY_COLUMNS.index("sobel"))
SQUARE = tl.constexpr(STUDY_COLUMNS.index("top"))
NOISE = tl.constexpr(STUDY_COLUMNS.index("sigma"))
LEVEL = tl.constexpr(STUDY_COLUMNS.index("level"))
KEY = tl.constexpr(STUDY_COLUMNS.index("c1"))
QUARTER = tl.constexpr(1 << 22)


@triton.jit
def word(row, i: tl.constexpr):
    return tl.load(row + KEY + i).to(tl.uint32, bitcast=True)


@triton.jit
def philox(pixel, row):
    """The four words of each pixel: Philox4x32-10."""
    c0 = pixel.to(tl.uint32)
    zero = c0 ^ c0
    c1, c2, c3 = zero + word(row, 0), zero + word(row, 1), zero + word(row, 2)
    k0, k1 = word(row, 3), word(row, 4)
    a, b = zero + 0xD2511F53, zero + 0xCD9E8D57
    for _ in tl.static_range(10):
        low0, low2 = c0 * a, c2 * b
        high0, high2 = tl.umulhi(c0, a), tl.umulhi(c2, b)
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high0 ^ c3 ^ k1, low0
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def radius(bits):
    """√(−2 ln u) of u = ((bits >> 8) + 1) · 2⁻²⁴, by the Cephes library's logf: exact near u = 1, where lg2 is not."""
    whole = ((bits >> 8).to(tl.int32) + 1).to(tl.float32).to(tl.int32, bitcast=True)
    exponent = (whole - 0x3F3504F3) >> 23  # the mantissa is brought into [√½, √2)
    x = (whole - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    y = 7.0376836292e-2 * x - 1.1514610310e-1
    y = y * x + 1.1676998740e-1
    y = y * x - 1.2420140846e-1
    y = y * x + 1.4249322787e-1
    y = y * x - 1.6668057665e-1
    y = y * x + 2.0000714765e-1
    y = y * x - 2.4999993993e-1
    y = y * x + 3.3333331174e-1
    square = x * x
    log = x + (y * x * square - 0.5 * square) + (exponent - 24).to(tl.float32) * 0.69314718056
    return tl.sqrt(tl.maximum(-2.0 * log, 0.0))


@triton.jit
def unit_circle(bits):
    """cos and sin of 2π · (bits >> 8) · 2⁻²⁴: the nearest quarter turn is exact, the rest at most an eighth."""
    turn = (bits >> 8).to(tl.int32)
    quarter = (turn + QUARTER // 2) >> 22
    x = (turn - (quarter << 22)).to(tl.float32) * (1.5707963267948966 / 4194304)
    square = x * x
    sine = x + x * square * ((-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1)
    cosine = (2.443315711809948e-5 * square - 1.388731625493765e-3) * square + 4.166664568298827e-2
    cosine = 1.0 - 0.5 * square + square * square * cosine
    odd = (quarter & 1) != 0
    a, b = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    return tl.where(((quarter + 1) & 2) != 0, -a, a), tl.where((quarter & 2) != 0, -b, b)


@triton.jit
def add_noise(r, g, b, pixel, sigma, row):
    w0, w1, w2, w3 = philox(pixel, row)
    far = radius(w0)
    cosine, sine = unit_circle(w1)
    r, g = clip(r + sigma * far * cosine), clip(g + sigma * far * sine)
    cosine, sine = unit_circle(w3)
    return r, g, clip(b + sigma * radius(w2) * cosine)


@triton.jit
def study_kernel(
    parameters,
    source,
    out,
    mean0,
    mean1,
    mean2,
    std0,
    std1,
    std2,
    S: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """BLOCK pixels of a view. With Sobel each is made from its nine neighbours, whose noise is drawn again."""
    blocks: tl.constexpr = (S * S + BLOCK - 1) // BLOCK
    view = tl.program_id(0) // blocks
    row = parameters + view * STUDY_ROW
    turns = tl.load(row + TURNS)
    wants_gradient = tl.load(row + SOBEL) != 0
    sigma = tl.load(row + NOISE).to(tl.float32, bitcast=True)
    o = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    m = o < S * S
    y, x = o // S, o % S
    place = tl.cast(view, tl.int64) * (3 * S * S)
    r = tl.zeros((BLOCK,), tl.float32)
    g = tl.zeros((BLOCK,), tl.float32)
    b = tl.zeros((BLOCK,), tl.float32)
    gradient_y = tl.zeros((BLOCK,), tl.float32)
    gradient_x = tl.zeros((BLOCK,), tl.float32)
    first, stop = 4, 5  # the pixel itself
    if wants_gradient:
        first, stop = 0, 9
    for neighbour in range(first, stop):
        dy, dx = neighbour // 3 - 1, neighbour % 3 - 1
        i, j = tl.minimum(tl.maximum(y + dy, 0), S - 1), tl.minimum(tl.maximum(x + dx, 0), S - 1)
        from_y = tl.where(turns == 0, i, tl.where(turns == 1, j, tl.where(turns == 2, S - 1 - i, S - 1 - j)))
        from_x = tl.where(turns == 0, j, tl.where(turns == 1, S - 1 - i, tl.where(turns == 2, S - 1 - j, i)))
        p = source + place + from_y * S + from_x
        r = tl.load(p, mask=m, other=0.0).to(tl.float32)
        g = tl.load(p + S * S, mask=m, other=0.0).to(tl.float32)
        b = tl.load(p + 2 * S * S, mask=m, other=0.0).to(tl.float32)
        if sigma > 0:
            r, g, b = add_noise(r, g, b, i * S + j, sigma, row)
        level = gray_level(r, g, b)
        gradient_y += level * (dy * (2 - dx * dx) * 1.0)
        gradient_x += level * (dx * (2 - dy * dy) * 1.0)
    length = tl.minimum(0.25 * tl.sqrt(gradient_x * gradient_x + gradient_y * gradient_y), 1.0)
    top, left, side = tl.load(row + SQUARE), tl.load(row + SQUARE + 1), tl.load(row + SQUARE + 2)
    filled = (y >= top) & (y < top + side) & (x >= left) & (x < left + side)
    level = tl.load(row + LEVEL).to(tl.float32, bitcast=True)
    r = (tl.where(filled, level, tl.where(wants_gradient, length, r)) - mean0) * std0
    g = (tl.where(filled, level, tl.where(wants_gradient, length, g)) - mean1) * std1
    b = (tl.where(filled, level, tl.where(wants_gradient, length, b)) - mean2) * std2
    if CHANNELS_LAST:
        q = out + place + 3 * o
        tl.store(q, r.to(out.dtype.element_ty), mask=m)
        tl.store(q + 1, g.to(out.dtype.element_ty), mask=m)
        tl.store(q + 2, b.to(out.dtype.element_ty), mask=m)
    else:
        store_planes(out + place, o, m, r, g, b, S)
