"""Between forward and backward: a prediction meets its counterpart."""

from __future__ import annotations

import triton
import triton.language as tl

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def combine_kernel(
    statistics,
    table,
    terms,
    batch,
    log,
    expectation,
    second,
    LARGE: tl.constexpr,
    VIEWS: tl.constexpr,
    SELF: tl.constexpr,
    INVARIANCE: tl.constexpr,
    METRICS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """What every prediction contributes to the loss, and what its gradient needs; program (images, pair).

    table [3, pairs, B]: log of the denominator (log 2); the constant of the weights, −(α_log E[s] − α_expectation
    E[s']), and the coefficient of the positive (natural). terms [2 or 4, pairs, B]: −log p, divergence, and with
    METRICS whether the positive is closest, entropy; 0 for pairs that do not count.

    Everything that vanishes as the task is solved is written in shares, and never as what is left of 1.
    """
    pair = tl.program_id(1)
    i, j = pair // LARGE, pair % LARGE
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < batch
    stride = tl.cast(VIEWS * LARGE, tl.int64) * batch
    own = statistics + tl.cast(pair, tl.int64) * batch + row
    counts = tl.where((i != j) | SELF, 1.0, 0.0)
    surprise = tl.load(own, mask=real, other=0.0)
    lse = tl.load(own + stride, mask=real, other=0.0)
    share = tl.load(own + 2 * stride, mask=real, other=0.0)
    positive = tl.load(own + 3 * stride, mask=real, other=0.0)
    mean = tl.load(own + 5 * stride, mask=real, other=0.0)
    expected = positive + share * (mean - positive)
    coefficient = -share * counts
    constant = tl.zeros((ROWS,), tl.float32)
    divergence = tl.zeros((ROWS,), tl.float32)
    if INVARIANCE:
        counterpart = j * LARGE + tl.where(i < LARGE, i, j)
        other = statistics + tl.cast(counterpart, tl.int64) * batch + row
        differs = tl.where(i != j, LN2, 0.0)
        delta = positive - tl.load(other + 3 * stride, mask=real, other=0.0)
        difference = tl.load(own + 4 * stride, mask=real, other=0.0)
        change = share * difference - share * delta
        divergence = differs * (change + tl.load(other, mask=real, other=0.0) - surprise)
        constant = differs * ((expectation - log) * expected - expectation * (delta + change))
        at_positive = (log - expectation) * share * (positive - mean) - expectation * change
        coefficient += differs * (1.0 - share) * at_positive
        # Pairs whose counterpart this one is: (j, i), or every small crop with the large crop j = i.
        begin = tl.where(i == j, LARGE, j)
        end = tl.where(i == j, VIEWS, tl.where(i < LARGE, j + 1, j))
        for k in range(begin, end):
            there = statistics + (tl.cast(k * LARGE + i, tl.int64)) * batch + row
            coefficient += second * (tl.load(there + 2 * stride, mask=real, other=0.0) - share)
    out = table + tl.cast(pair, tl.int64) * batch + row
    tl.store(out, lse, mask=real)
    tl.store(out + stride, constant, mask=real)
    tl.store(out + 2 * stride, coefficient, mask=real)
    term = terms + tl.cast(pair, tl.int64) * batch + row
    tl.store(term, counts * surprise * LN2, mask=real)
    tl.store(term + stride, counts * divergence, mask=real)
    if METRICS:
        tl.store(term + 2 * stride, counts * tl.load(own + 6 * stride, mask=real, other=0.0), mask=real)
        tl.store(term + 3 * stride, counts * (lse - expected) * LN2, mask=real)
