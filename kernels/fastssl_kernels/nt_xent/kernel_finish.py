"""Between forward and backward: partial sums become losses, and the positives join them in fp32."""

from __future__ import annotations

import triton
import triton.language as tl

from ..rows_kernel import load_unit_rows
from .kernel import LOWEST

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _softplus2(margin):
    """log2(1 + 2^margin), with all digits where it is small; −∞ gives 0."""
    small = tl.exp2(-tl.abs(margin))
    series = small * (1.0 - small * (0.5 - small * 0.3333333)) * LOG2E
    return tl.maximum(margin, 0.0) + tl.where(small < 1e-3, series, tl.log2(1.0 + small))


@triton.jit
def finish_kernel(
    partial,
    attracted,
    x,
    factor,
    z,
    partner,
    partner_factor,
    partner_z,
    table,
    share,
    weight,
    attraction,
    slots,
    attracted_slots,
    length,
    c,
    tie,
    log2_rescale,
    rows,
    batch,
    padded,
    VIEWS: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    NORMALIZE: tl.constexpr,
    ONLINE: tl.constexpr,
    METRICS: tl.constexpr,
    ATTRACT: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Reduce the partial sums, add the positives in fp32, and write what a row contributes.

    VIEWS ≥ 2: the positives are the other views in x. VIEWS = 1: the positive is row i of `partner`.

    table [rows, 2 or 4]: loss, lse; with METRICS correct (0 or 1), entropy; natural units.
    share [rows]: probability of all negatives together.
    weight, padded layout: 2^(−lse) · 2^log2_rescale, or with ONLINE lse − log2_rescale, in log 2: what the gradient
    multiplies or subtracts. The rescaling keeps weights within the range of fp16 products.
    attraction [rows, D] with ATTRACT: Σ p_in n over the negatives of the first `attracted_slots` slots.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < rows
    at = tl.cast(row // batch * padded + row % batch, tl.int64)
    statistics = 1 + (ONLINE or METRICS) + METRICS
    top = tl.full((ROWS,), LOWEST, tl.float32)
    if ONLINE or METRICS:
        for slot in range(slots):
            pointers = partial + (tl.cast(slot, tl.int64) * statistics + 1) * length + at
            top = tl.maximum(top, tl.load(pointers, mask=real, other=LOWEST))
    total = tl.zeros((ROWS,), tl.float32)
    weighted = tl.zeros((ROWS,), tl.float32)
    gathered = tl.zeros((ROWS, P), tl.float32)
    for slot in range(slots):
        pointers = partial + tl.cast(slot, tl.int64) * statistics * length + at
        relative = tl.full((ROWS,), 1.0, tl.float32)
        if ONLINE:
            relative = tl.exp2(tl.load(pointers + length, mask=real, other=LOWEST) - top)
        total += relative * tl.load(pointers, mask=real, other=0.0)
        if METRICS:
            weighted += relative * tl.load(pointers + 2 * length, mask=real, other=0.0)
    if ATTRACT:
        for slot in range(attracted_slots):
            relative = tl.full((ROWS,), 1.0, tl.float32)
            if ONLINE:
                pointers = partial + (tl.cast(slot, tl.int64) * statistics + 1) * length + at
                relative = tl.exp2(tl.load(pointers, mask=real, other=LOWEST) - top)
            inside = (tl.cast(slot, tl.int64) * length + at)[:, None] * P + tl.arange(0, P)[None, :]
            gathered += relative[:, None] * tl.load(attracted + inside, mask=real[:, None], other=0.0)

    shift = c
    if ONLINE:
        shift = 0.0
    mine = load_unit_rows(x, factor, row, real, D, P, NORMALIZE)
    mean = tl.zeros((ROWS,), tl.float32)
    spread = tl.zeros((ROWS,), tl.float32)
    high = tl.full((ROWS,), LOWEST, tl.float32)
    best = tl.full((ROWS,), LOWEST, tl.float32)
    for step in tl.static_range(1, max(VIEWS, 2)):
        positive = (row + step * batch) % rows
        if VIEWS == 1:
            other = load_unit_rows(partner, partner_factor, row, real, D, P, NORMALIZE)
        else:
            other = load_unit_rows(x, factor, positive, real, D, P, NORMALIZE)
        logit = tl.sum(mine * other, 1) * c - shift
        mean += logit / max(VIEWS - 1, 1)
        higher = tl.maximum(high, logit)
        spread = spread * tl.exp2(high - higher) + tl.exp2(logit - higher)
        high = higher
        if METRICS:
            # As products see the rows, so that a row equal to its positive ties with it.
            columns = tl.arange(0, P)[None, :]
            own = tl.load(z + at[:, None] * P + columns, mask=real[:, None], other=0.0).to(tl.float32)
            if VIEWS == 1:
                theirs = tl.load(partner_z + at[:, None] * P + columns, mask=real[:, None], other=0.0)
            else:
                there = tl.cast(positive // batch * padded + positive % batch, tl.int64)
                theirs = tl.load(z + there[:, None] * P + columns, mask=real[:, None], other=0.0)
            best = tl.maximum(best, tl.sum(own * theirs.to(tl.float32), 1) * c - shift)

    log_sum = tl.log2(total)
    if ONLINE:
        log_sum += top
    positives = high + tl.log2(spread)
    margin = log_sum - positives
    beyond = _softplus2(margin)
    lse = positives + beyond
    negatives = 1.0 / (1.0 + tl.exp2(-margin))
    width: tl.constexpr = 4 if METRICS else 2
    line = table + tl.cast(row, tl.int64) * width
    tl.store(share + row, negatives, mask=real)
    tl.store(line, (beyond + positives - mean) * LN2, mask=real)
    tl.store(line + 1, lse * LN2, mask=real)
    if ONLINE:
        tl.store(weight + at, lse - log2_rescale, mask=real)
    else:
        tl.store(weight + at, tl.exp2(log2_rescale - lse), mask=real)
    scale = tl.where(total > 0.0, negatives / total, 0.0)
    if METRICS:
        expected = weighted * scale
        for step in tl.static_range(1, max(VIEWS, 2)):
            if VIEWS == 1:
                other = load_unit_rows(partner, partner_factor, row, real, D, P, NORMALIZE)
            else:
                other = load_unit_rows(x, factor, (row + step * batch) % rows, real, D, P, NORMALIZE)
            logit = tl.sum(mine * other, 1) * c - shift
            expected += tl.exp2(logit - lse) * logit
        tl.store(line + 2, tl.where(best > top + tie, 1.0, 0.0), mask=real)
        tl.store(line + 3, (lse - expected) * LN2, mask=real)
    if ATTRACT:
        column = tl.arange(0, P)
        pointers = attraction + tl.cast(row, tl.int64)[:, None] * D + column[None, :]
        tl.store(pointers, gathered * scale[:, None], mask=real[:, None] & (column < D)[None, :])
