"""The Triton kernels of RELIC, forward: sums over the negatives of every pair of views, in one launch.

A logit is kept in units of log 2: l = s·c − c with c = log2(e)/τ where the maximum is known (|s| ≤ 1, so l ≤ 0), and
l = s·c where it is tracked (ONLINE).

Layout. Online rows are LARGE + SMALL segments of `rows_padded` rows, the rows of negatives LARGE segments of
`columns_padded`, a multiple of the tile; a row is padded to P numbers. Padding is zero, so that tiles load without
masks. Pair (i, j) is number i·LARGE + j. Its counterpart is (j, i) between large crops and (j, j) where i is small:
always online view j, so that two crops of one image meet two sets of negatives, and both predictions come of one pass.

All other images as negatives (not SAMPLED): column n of a segment is image n, and only the tiles that a tile of rows
meets on the diagonal are masked. SAMPLED: column n is image ids[n], and every tile is masked; they are few.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..nt_xent.kernel import column_tiles
from ..rows_kernel import load_unit_rows
from ..tile_kernel import load_tile, more_pieces

# A logit that must not count; far below LOWEST, where running maxima begin.
EXCLUDED = tl.constexpr(-1e30)
LOWEST = tl.constexpr(-1e29)


@triton.jit
def logits_of(
    own,
    rows,
    row,
    columns,
    column,
    c,
    shift,
    P: tl.constexpr,
    BD: tl.constexpr,
    BN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of logits and the tile of columns; `own` is the first piece of the rows."""
    streamed = load_tile(columns, column, 0, P, BN, BD, False)
    cosine = tl.dot(own, tl.trans(streamed), input_precision=PRECISION)
    cosine = more_pieces(cosine, rows, row, columns, column, 0, P, BD, False, PRECISION)
    return cosine * c - shift, streamed


@triton.jit
def tiles_of(image, first, width, SAMPLED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """`column_tiles`, or where all are masked: no hot tile, then every tile in order."""
    if SAMPLED:
        tiles = tl.cdiv(width, BN)
        return width * 0, width * 0, width * 0, tiles, tiles
    return column_tiles(image, first, width, True, BM, BN)


@triton.jit
def wanted_columns(ids, inside, images, width, SAMPLED: tl.constexpr, BN: tl.constexpr):
    """Which entries of a masked tile at place `inside` of a segment are negatives of the rows that show `images`."""
    place = inside + tl.arange(0, BN)
    column_image = place
    if SAMPLED:
        column_image = tl.load(ids + place, mask=place < width, other=-1).to(tl.int32)
    return (place < width)[None, :] & (images[:, None] != column_image[None, :])


@triton.jit
def _add_logits(
    mine,
    theirs,
    top,
    total,
    difference,
    expected,
    INVARIANCE: tl.constexpr,
    EXPECTATION: tl.constexpr,
    MAXIMUM: tl.constexpr,
    ONLINE: tl.constexpr,
):
    """Take a tile into the running sums of one prediction."""
    if ONLINE:
        before = top
        top = tl.maximum(top, tl.max(mine, 1))
        rescale = tl.exp2(before - top)
        exps = tl.exp2(mine - top[:, None])
        total *= rescale
        if INVARIANCE:
            difference *= rescale
        if EXPECTATION:
            expected *= rescale
    else:
        exps = tl.exp2(mine)
        if MAXIMUM:
            top = tl.maximum(top, tl.max(mine, 1))
    total += tl.sum(exps, 1)
    if INVARIANCE:
        difference += tl.sum(exps * (mine - theirs), 1)
    if EXPECTATION:
        expected += tl.sum(exps * mine, 1)
    return top, total, difference, expected


@triton.jit
def _store_sums(
    partial,
    length,
    top,
    total,
    difference,
    expected,
    stored,
    INVARIANCE: tl.constexpr,
    EXPECTATION: tl.constexpr,
    MAXIMUM: tl.constexpr,
    ONLINE: tl.constexpr,
):
    tl.store(partial, total, mask=stored)
    if ONLINE or MAXIMUM:
        tl.store(partial + length, top, mask=stored)
    if INVARIANCE:
        tl.store(partial + 2 * length, difference, mask=stored)
    if EXPECTATION:
        tl.store(partial + 3 * length, expected, mask=stored)


@triton.jit
def pair_sums_kernel(
    online,
    columns,
    ids,
    partial,
    c,
    first,
    width,
    rows_padded,
    columns_padded,
    LARGE: tl.constexpr,
    SMALL: tl.constexpr,
    P: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    SAMPLED: tl.constexpr,
    SELF: tl.constexpr,
    INVARIANCE: tl.constexpr,
    EXPECTATION: tl.constexpr,
    MAXIMUM: tl.constexpr,
    ONLINE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """partial [splits, 4, pairs, rows]: Σ exp, the largest logit, Σ exp·(l − l'), Σ exp·l; the last three if wanted.

    Program (tile of images, pair, split). With INVARIANCE a program computes a prediction and its counterpart: one for
    each two large crops, one for each small and large crop. What another program computes is left to it.
    """
    pair, split, splits = tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    i, j = pair // LARGE, pair % LARGE
    there = tl.where(i < LARGE, i, j)
    image = tl.program_id(0) * BM
    images = first + image + tl.arange(0, BM)
    if INVARIANCE:
        active = (i < j) | (i >= LARGE) | ((i == j) & SELF & (SMALL == 0))
        both = (i < j) | (i == LARGE)
    else:
        active = (i != j) | SELF
        both = i < 0
    row, other_row = i * rows_padded + image, j * rows_padded + image
    base, other_base = j * columns_padded, there * columns_padded
    own = load_tile(online, row, 0, P, BM, BD, False)
    if INVARIANCE:
        other = load_tile(online, other_row, 0, P, BM, BD, False)
    shift = c
    if ONLINE:
        shift = 0.0
    top = tl.full((BM,), LOWEST, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    difference = tl.zeros((BM,), tl.float32)
    expected = tl.zeros((BM,), tl.float32)
    top_2 = tl.full((BM,), LOWEST, tl.float32)
    total_2 = tl.zeros((BM,), tl.float32)
    difference_2 = tl.zeros((BM,), tl.float32)
    expected_2 = tl.zeros((BM,), tl.float32)
    hot, start, skipped, special, cold = tiles_of(image, first, width, SAMPLED, BM, BN)
    hot = tl.where(active, hot, 0)
    cold = tl.where(active & (split == splits - 1), cold, 0)
    chunk = tl.cdiv(hot, splits)
    for step in range(split * chunk, tl.minimum(split * chunk + chunk, hot)):
        column = (step + tl.where(step >= start, skipped, 0)) * BN
        mine, _ = logits_of(own, online, row, columns, base + column, c, shift, P, BD, BN, PRECISION)
        if INVARIANCE:
            theirs, _ = logits_of(
                other, online, other_row, columns, other_base + column, c, shift, P, BD, BN, PRECISION
            )
            top_2, total_2, difference_2, expected_2 = _add_logits(
                theirs, mine, top_2, total_2, difference_2, expected_2, True, EXPECTATION, MAXIMUM, ONLINE
            )
        else:
            theirs = mine
        top, total, difference, expected = _add_logits(
            mine, theirs, top, total, difference, expected, INVARIANCE, EXPECTATION, MAXIMUM, ONLINE
        )
    for step in range(cold):
        column = tl.where(step < special, start + step, width // BN) * BN
        wanted = wanted_columns(ids, column, images, width, SAMPLED, BN)
        mine, _ = logits_of(own, online, row, columns, base + column, c, shift, P, BD, BN, PRECISION)
        mine = tl.where(wanted, mine, EXCLUDED)
        if INVARIANCE:
            theirs, _ = logits_of(
                other, online, other_row, columns, other_base + column, c, shift, P, BD, BN, PRECISION
            )
            theirs = tl.where(wanted, theirs, EXCLUDED)
            top_2, total_2, difference_2, expected_2 = _add_logits(
                theirs, mine, top_2, total_2, difference_2, expected_2, True, EXPECTATION, MAXIMUM, ONLINE
            )
        else:
            theirs = mine
        top, total, difference, expected = _add_logits(
            mine, theirs, top, total, difference, expected, INVARIANCE, EXPECTATION, MAXIMUM, ONLINE
        )
    pairs = tl.num_programs(1)
    length = tl.cast(rows_padded, tl.int64) * pairs
    inside = tl.arange(0, BM)
    slot = partial + split * 4 * length + image + inside
    _store_sums(
        slot + pair * rows_padded, length, top, total, difference, expected, inside < tl.where(active, BM, 0),
        INVARIANCE, EXPECTATION, MAXIMUM, ONLINE,
    )  # fmt: skip
    if INVARIANCE:
        counterpart = j * LARGE + there
        _store_sums(
            slot + counterpart * rows_padded, length, top_2, total_2, difference_2, expected_2,
            inside < tl.where(both, BM, 0), True, EXPECTATION, MAXIMUM, ONLINE,
        )  # fmt: skip


@triton.jit
def load_unit(x, row, real, D: tl.constexpr, P: tl.constexpr, SMALLEST: tl.constexpr):
    """Rows of x [N, D] in fp32, divided by their length, found here: as exact as the input."""
    column = tl.arange(0, P)
    pointers = x + tl.cast(row, tl.int64)[:, None] * D + column[None, :]
    value = tl.load(pointers, mask=real[:, None] & (column < D)[None, :], other=0.0).to(tl.float32)
    square = tl.sum(value * value, 1)
    usable = square > SMALLEST * SMALLEST
    inverse = tl.where(usable, tl.div_rn(1.0, tl.sqrt_rn(tl.where(usable, square, 1.0))), 0.0)
    return value * inverse[:, None]


@triton.jit
def _softplus2(margin):
    """log2(1 + 2^margin), with all digits where it is small; −∞ gives 0."""
    small = tl.exp2(-tl.abs(margin))
    series = small * (1.0 - small * (0.5 - small * 0.3333333)) * 1.4426950408889634
    return tl.maximum(margin, 0.0) + tl.where(small < 1e-3, series, tl.log2(1.0 + small))


@triton.jit
def pair_statistics_kernel(
    partial,
    online,
    x,
    factor,
    target,
    statistics,
    c,
    tie,
    splits,
    batch,
    rows_padded,
    LARGE: tl.constexpr,
    VIEWS: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    SMALLEST: tl.constexpr,
    DIAGONAL: tl.constexpr,
    INVARIANCE: tl.constexpr,
    EXPECTATION: tl.constexpr,
    METRICS: tl.constexpr,
    ONLINE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Reduce the partial sums and add the positives in fp32, all pairs of a few images in one program.

    statistics [6 or 7, pairs, B] in units of log 2: −log p of the positive; log of the denominator; share, the
    probability of all negatives; the positive's logit; means over the negatives of l − l' and of l; with METRICS
    whether the positive is the closest, as products see the rows, so that equal rows tie.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < batch
    pairs = VIEWS * LARGE
    length = tl.cast(rows_padded, tl.int64) * pairs
    shift = c
    if ONLINE:
        shift = 0.0
    for i in range(VIEWS):
        mine = load_unit_rows(x, factor, i * batch + row, real, D, P, True)
        for j in range(LARGE):
            theirs = load_unit(target, j * batch + row, real, D, P, SMALLEST)
            positive = tl.sum(mine * theirs, 1) * c - shift
            computed = real & (DIAGONAL | (i != j))
            slot = partial + (i * LARGE + j) * rows_padded + row
            top = tl.full((ROWS,), LOWEST, tl.float32)
            if ONLINE or METRICS:
                for split in range(splits):
                    at = slot + (split * 4 + 1) * length
                    top = tl.maximum(top, tl.load(at, mask=computed, other=LOWEST))
            total = tl.zeros((ROWS,), tl.float32)
            difference = tl.zeros((ROWS,), tl.float32)
            expected = tl.zeros((ROWS,), tl.float32)
            for split in range(splits):
                at = slot + split * 4 * length
                relative = tl.full((ROWS,), 1.0, tl.float32)
                if ONLINE:
                    relative = tl.exp2(tl.load(at + length, mask=computed, other=LOWEST) - top)
                total += relative * tl.load(at, mask=computed, other=0.0)
                if INVARIANCE:
                    difference += relative * tl.load(at + 2 * length, mask=computed, other=0.0)
                if EXPECTATION:
                    expected += relative * tl.load(at + 3 * length, mask=computed, other=0.0)
            some = total > 0.0
            log_sum = tl.where(some, tl.log2(tl.where(some, total, 1.0)), float("-inf"))
            if ONLINE:
                log_sum += top
            margin = log_sum - positive
            surprise = _softplus2(margin)
            scale = tl.where(some, tl.div_rn(1.0, tl.where(some, total, 1.0)), 0.0)
            out = statistics + tl.cast(i * LARGE + j, tl.int64) * batch + row
            stride = tl.cast(pairs, tl.int64) * batch
            tl.store(out, surprise, mask=real)
            tl.store(out + stride, positive + surprise, mask=real)
            tl.store(out + 2 * stride, tl.div_rn(1.0, 1.0 + tl.exp2(-margin)), mask=real)
            tl.store(out + 3 * stride, positive, mask=real)
            tl.store(out + 4 * stride, difference * scale, mask=real)
            tl.store(out + 5 * stride, expected * scale, mask=real)
            if METRICS:
                seen = mine.to(online.dtype.element_ty).to(tl.float32)
                shown = theirs.to(online.dtype.element_ty).to(tl.float32)
                best = tl.sum(seen * shown, 1) * c - shift
                tl.store(out + 6 * stride, tl.where(best > top + tie, 1.0, 0.0), mask=real)
