"""LARS for any number of tensors in two launches: sums of squares, then the update.

    measure    8 bytes a parameter     w, g → Σw², Σu² of each chunk          u = g/S + λw  (variant C: u = g/S)
    update    20 bytes a parameter     w, g, v → w, v                          and 8 more with a moving average

A table on the device holds one row of 64-bit words a tensor (`COLUMNS`), a second one its options. Every access to a
tensor is 128 bits wide: see `ema/kernel.py`. The sums of the chunks are added in a fixed order by every program of the
update, so that results do not depend on scheduling; a tensor has at most `PARTS` chunks.

Squares leave the range of float32 long before the numbers do, so each sum is kept three times: as it is, of x·2⁶⁴ and
of x·2⁻⁶⁴; in the end the one counts that neither underflowed nor overflowed. (Arithmetic is free here, bytes are not.)
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..ema.kernel import array, block, lerp

WEIGHT = tl.constexpr(0)
GRADIENT = tl.constexpr(1)
VELOCITY = tl.constexpr(2)
AVERAGE = tl.constexpr(3)
COPY = tl.constexpr(4)
ELEMENTS = tl.constexpr(5)
BLOCKS = tl.constexpr(6)
FIRST = tl.constexpr(7)
LR = tl.constexpr(8)
MOMENTUM = tl.constexpr(9)
COLUMNS = tl.constexpr(10)

# Columns of the options. Where LR or MOMENTUM of the table is not 0, the number stands at that address instead.
DECAY = tl.constexpr(0)
ETA = tl.constexpr(1)
ADAPT = tl.constexpr(2)
LR_NUMBER = tl.constexpr(3)
MOMENTUM_NUMBER = tl.constexpr(4)
OPTIONS = tl.constexpr(5)

UP = tl.constexpr(2.0**64)
DOWN = tl.constexpr(2.0**-64)
LARC_EPSILON = tl.constexpr(1e-8)


@triton.jit
def span(row, pid, BLOCK: tl.constexpr):
    """First and last element (exclusive) of a program's chunk; first program and number of chunks of its tensor.

    64 bits wide; the first element is visibly a multiple of BLOCK.
    """
    first = tl.load(row + FIRST)
    blocks = tl.load(row + BLOCKS)
    elements = tl.load(row + ELEMENTS)
    begin = (pid - first) * blocks * BLOCK
    return begin, tl.minimum(begin + blocks * BLOCK, elements), first, tl.cdiv(elements, blocks * BLOCK)


@triton.jit
def scalar(address, number, WIDE: tl.constexpr):
    """The number, or where there is an address what stands there."""
    if address != 0:
        number = tl.load(address.to(tl.pointer_type(WIDE), bitcast=True))
    return number


@triton.jit
def add_squares(x, plain, up, down):
    return plain + x * x, up + (x * UP) * (x * UP), down + (x * DOWN) * (x * DOWN)


@triton.jit
def total(plain, up, down):
    """The sum of squares in float64, from the accumulator that held it."""
    s = tl.sum(plain, 0).to(tl.float64)
    s_up = tl.sum(up, 0).to(tl.float64) * DOWN * DOWN
    s_down = tl.sum(down, 0).to(tl.float64) * UP * UP
    return tl.where(s < 1e-26, s_up, tl.where(s < 1e30, s, s_down))


@triton.jit
def load_gradient(p_gradient, o, m, unscale, VEC: tl.constexpr):
    return tl.load(block(p_gradient, o, VEC), mask=m, other=0).to(unscale.dtype) * unscale


@triton.jit
def measure_block(p_weight, p_gradient, o, m, unscale, decay, VEC: tl.constexpr):
    w = tl.load(block(p_weight, o, VEC), mask=m, other=0).to(unscale.dtype)
    return w, load_gradient(p_gradient, o, m, unscale, VEC) + decay * w


@triton.jit
def measure_kernel(
    table_ptr,
    options_ptr,
    owner_ptr,
    parts_ptr,
    scale_ptr,
    found_ptr,
    VARIANT: tl.constexpr,
    PARAMETER: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    VEC: tl.constexpr,
):
    """`parts` [programs, 2] float64 ← Σw², Σu² of each chunk; `found`, unless None, ← 1 where Σu² is not finite."""
    pid = tl.program_id(0)
    tensor = tl.load(owner_ptr + pid)
    row = table_ptr + tensor * COLUMNS
    p_weight = array(row, WEIGHT, PARAMETER)
    p_gradient = array(row, GRADIENT, PARAMETER)
    begin, end, _, _ = span(row, pid, BLOCK)
    needed = found_ptr is not None or tl.load(options_ptr + tensor * OPTIONS + ADAPT) != 0
    decay = tl.load(options_ptr + tensor * OPTIONS + DECAY)
    if VARIANT == "C":
        decay = decay * 0
    unscale = tl.full((), 1, WIDE) if scale_ptr is None else 1 / tl.load(scale_ptr).to(WIDE)

    w_0 = tl.zeros((BLOCK,), WIDE)
    w_1 = tl.zeros((BLOCK,), WIDE)
    w_2 = tl.zeros((BLOCK,), WIDE)
    u_0 = tl.zeros((BLOCK,), WIDE)
    u_1 = tl.zeros((BLOCK,), WIDE)
    u_2 = tl.zeros((BLOCK,), WIDE)
    if needed:
        for i in range(tl.cdiv(end - begin, BLOCK)):
            o = begin + i * BLOCK + tl.arange(0, BLOCK)
            w, u = measure_block(p_weight, p_gradient, o, o // VEC < end // VEC, unscale, decay, VEC)
            w_0, w_1, w_2 = add_squares(w, w_0, w_1, w_2)
            u_0, u_1, u_2 = add_squares(u, u_0, u_1, u_2)
    w_squares = total(w_0, w_1, w_2)
    u_squares = total(u_0, u_1, u_2)
    if needed and end % VEC != 0:
        o = end // VEC * VEC + tl.arange(0, VEC)
        zero = tl.zeros((VEC,), WIDE)
        w, u = measure_block(p_weight, p_gradient, o, o < end, unscale, decay, 1)
        w_3, w_4, w_5 = add_squares(w, zero, zero, zero)
        u_3, u_4, u_5 = add_squares(u, zero, zero, zero)
        w_squares += total(w_3, w_4, w_5)
        u_squares += total(u_3, u_4, u_5)
    tl.store(parts_ptr + pid * 2, w_squares)
    tl.store(parts_ptr + pid * 2 + 1, u_squares)
    if found_ptr is not None:
        # Infinity minus itself and NaN minus itself are NaN, which differs from 0.
        tl.atomic_max(found_ptr, 1.0, mask=u_squares - u_squares != 0)


@triton.jit
def update_block(
    p_weight,
    p_gradient,
    p_velocity,
    p_average,
    p_copy,
    averaged,
    copied,
    o,
    m,
    unscale,
    scale,
    decay,
    momentum,
    lr,
    ema_weight,
    NESTEROV: tl.constexpr,
    AVERAGED: tl.constexpr,
    COPIED: tl.constexpr,
    VEC: tl.constexpr,
):
    p_w = block(p_weight, o, VEC)
    p_v = block(p_velocity, o, VEC)
    b_w = tl.load(p_w, mask=m, other=0)
    w = b_w.to(unscale.dtype)
    g = load_gradient(p_gradient, o, m, unscale, VEC)
    v = tl.load(p_v, mask=m, other=0).to(unscale.dtype)
    added = scale * (g + decay * w)
    v = momentum * v + added
    direction = momentum * v + added if NESTEROV else v
    b_new = (w - lr * direction).to(b_w.dtype)
    tl.store(p_w, b_new, mask=m)
    tl.store(p_v, v.to(b_w.dtype), mask=m)
    if AVERAGED:  # noqa: SIM102 (known to the compiler; the next one only to the program)
        if averaged:
            p_a = block(p_average, o, VEC)
            average = tl.load(p_a, mask=m, other=0).to(unscale.dtype)
            tl.store(p_a, lerp(average, b_new.to(unscale.dtype), ema_weight).to(b_w.dtype), mask=m)
    if COPIED:  # noqa: SIM102
        if copied:
            tl.store(block(p_copy, o, VEC), b_new.to(p_copy.dtype.element_ty), mask=m)


@triton.jit
def update_kernel(
    table_ptr,
    options_ptr,
    owner_ptr,
    parts_ptr,
    scale_ptr,
    found_ptr,
    ema_momentum_ptr,
    VARIANT: tl.constexpr,
    NESTEROV: tl.constexpr,
    PARAMETER: tl.constexpr,
    AVERAGED: tl.constexpr,
    COPY_TYPE: tl.constexpr,
    WIDE: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    VEC: tl.constexpr,
):
    """Weights, velocities, averages and copies of one chunk a program; nothing where `found` is given and not 0."""
    if found_ptr is not None:  # noqa: SIM102
        if tl.load(found_ptr) != 0:
            return
    pid = tl.program_id(0)
    tensor = tl.load(owner_ptr + pid)
    row = table_ptr + tensor * COLUMNS
    begin, end, first, chunks = span(row, pid, BLOCK)
    options = options_ptr + tensor * OPTIONS
    decay = tl.load(options + DECAY)
    eta = tl.load(options + ETA)
    adapt = tl.load(options + ADAPT) != 0
    unscale = tl.full((), 1, WIDE) if scale_ptr is None else 1 / tl.load(scale_ptr).to(WIDE)
    momentum = scalar(tl.load(row + MOMENTUM), tl.load(options + MOMENTUM_NUMBER), WIDE)
    lr = scalar(tl.load(row + LR), tl.load(options + LR_NUMBER), WIDE)
    ema_weight = (1 - tl.load(ema_momentum_ptr)).to(WIDE)

    o_part = tl.arange(0, PARTS)
    p_part = parts_ptr + (first + o_part) * 2
    m_part = o_part < chunks
    w_norm = tl.sqrt(tl.sum(tl.load(p_part, mask=m_part, other=0), 0)).to(WIDE)
    u_norm = tl.sqrt(tl.sum(tl.load(p_part + 1, mask=m_part, other=0), 0)).to(WIDE)
    both = (w_norm > 0) & (u_norm > 0)
    if VARIANT == "C":
        ratio = eta * w_norm / tl.where(both, u_norm + decay * w_norm + LARC_EPSILON, 1)
        decay = tl.where(adapt & ~both, 0, decay)
    else:
        ratio = eta * w_norm / tl.where(both, u_norm, 1)
    scale = tl.where(adapt & both, ratio, 1)
    if VARIANT == "A":
        scale = scale * lr
        lr = lr * 0 + 1

    COPIED: tl.constexpr = COPY_TYPE is not None
    p_weight = array(row, WEIGHT, PARAMETER)
    p_gradient = array(row, GRADIENT, PARAMETER)
    p_velocity = array(row, VELOCITY, PARAMETER)
    average = tl.load(row + AVERAGE)
    copy = tl.load(row + COPY)
    p_average = average.to(tl.pointer_type(PARAMETER), bitcast=True)
    p_copy = copy.to(tl.pointer_type(COPY_TYPE if COPIED else PARAMETER), bitcast=True)
    averaged = average != 0
    copied = copy != 0
    for i in range(tl.cdiv(end - begin, BLOCK)):
        o = begin + i * BLOCK + tl.arange(0, BLOCK)
        update_block(
            p_weight, p_gradient, p_velocity, p_average, p_copy, averaged, copied, o, o // VEC < end // VEC,
            unscale, scale, decay, momentum, lr, ema_weight, NESTEROV, AVERAGED, COPIED, VEC,
        )  # fmt: skip
    if end % VEC != 0:
        o = end // VEC * VEC + tl.arange(0, VEC)
        update_block(
            p_weight, p_gradient, p_velocity, p_average, p_copy, averaged, copied, o, o < end,
            unscale, scale, decay, momentum, lr, ema_weight, NESTEROV, AVERAGED, COPIED, 1,
        )  # fmt: skip
