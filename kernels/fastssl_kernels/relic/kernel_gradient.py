"""The backward pass of RELIC: weighted sums of negatives, then positives and the normalisation."""

from __future__ import annotations

import triton
import triton.language as tl

from ..rows_kernel import load_unit_rows
from ..tile_kernel import load_tile
from .kernel import load_unit, logits_of, tiles_of, wanted_columns

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _weights(
    mine,
    theirs,
    lse,
    constant,
    their_lse,
    log,
    expectation,
    second,
    INVARIANCE: tl.constexpr,
    SECOND: tl.constexpr,
):
    """p (constant + α_log s − α_expectation s') − α_second p', the derivative by the logits."""
    weight = tl.exp2(mine - lse[:, None])
    if INVARIANCE:
        weight *= constant[:, None] + (mine * log - theirs * expectation)
        if SECOND:
            weight -= second * tl.exp2(theirs - their_lse[:, None])
    else:
        weight *= constant[:, None]
    return weight


@triton.jit
def pair_gradient_kernel(
    online,
    columns,
    ids,
    table,
    partial,
    c,
    first,
    width,
    rows_padded,
    columns_padded,
    batch,
    rescale,
    log,
    expectation,
    second,
    LARGE: tl.constexpr,
    SMALL: tl.constexpr,
    P: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    SAMPLED: tl.constexpr,
    SELF: tl.constexpr,
    INVARIANCE: tl.constexpr,
    SECOND: tl.constexpr,
    ONLINE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """partial [splits, rows, P]: Σ over pairs and negatives of weight · column, for a tile of rows of one online view.

    Program (tile of images, view · pieces + piece, split). A view's work is a list of (target j, other pair): each
    large crop with every other; with itself once for every small crop whose counterpart that is; each small crop with
    every large one.
    """
    pieces: tl.constexpr = P // BD
    i, piece = tl.program_id(1) // pieces, tl.program_id(1) % pieces
    split, splits = tl.program_id(2), tl.num_programs(2)
    image = tl.program_id(0) * BM
    inside = image + tl.arange(0, BM)
    images, real = first + inside, inside < batch
    row = i * rows_padded + image
    own = load_tile(online, row, 0, P, BM, BD, False)
    gradient = tl.zeros((BM, BD), tl.float32)
    shift = c
    if ONLINE:
        shift = 0.0
    hot, start, skipped, special, cold = tiles_of(image, first, width, SAMPLED, BM, BN)
    cold = tl.where(split == splits - 1, cold, 0)
    chunk = tl.cdiv(hot, splits)
    stars: tl.constexpr = SMALL if INVARIANCE and SECOND else 0
    with_itself: tl.constexpr = max(stars, 1 if SELF else 0)
    pairs = tl.num_programs(1) // pieces * LARGE
    large = i < LARGE
    for work in range(tl.where(large, LARGE - 1 + with_itself, LARGE)):
        star = work - (LARGE - 1)
        itself = large & (star >= 0)
        j = tl.where(itself, i, tl.where(large, work + tl.where(work >= i, 1, 0), work))
        there = tl.where(large, i, j)
        own_term = tl.where(itself, 0.0, 1.0)
        reversed_term = tl.where(large & ((star < 0) | (stars > 0)), 1.0, 0.0)
        base = tl.where(itself, tl.where(SELF & (star == 0), 1.0, 0.0), 1.0) + second * reversed_term
        lse = tl.load(table + tl.cast(i * LARGE + j, tl.int64) * batch + inside, mask=real, other=0.0)
        constant = tl.zeros((BM,), tl.float32) + base
        their_lse = lse
        other = own
        other_row = row
        if INVARIANCE:
            other_view = j
            if stars > 0:
                other_view = tl.where(itself, LARGE + star, j)
            other_row = other_view * rows_padded + image
            other = load_tile(online, other_row, 0, P, BM, BD, False)
            constant += tl.load(table + tl.cast(pairs + i * LARGE + j, tl.int64) * batch + inside, mask=real, other=0.0)
            if SECOND:
                at = table + tl.cast(other_view * LARGE + there, tl.int64) * batch + inside
                their_lse = tl.load(at, mask=real, other=0.0)
        own_column, other_column = j * columns_padded, there * columns_padded
        constant *= rescale
        l_log, l_expectation = log * own_term * rescale * LN2, expectation * own_term * rescale * LN2
        l_second = second * reversed_term * rescale
        for step in range(split * chunk, tl.minimum(split * chunk + chunk, hot)):
            column = (step + tl.where(step >= start, skipped, 0)) * BN
            mine, streamed = logits_of(own, online, row, columns, own_column + column, c, shift, P, BD, BN, PRECISION)
            theirs = mine
            if INVARIANCE:
                theirs, _ = logits_of(
                    other, online, other_row, columns, other_column + column, c, shift, P, BD, BN, PRECISION
                )
            if P > BD:
                streamed = load_tile(columns + piece * BD, own_column + column, 0, P, BN, BD, False)
            weight = _weights(
                mine, theirs, lse, constant, their_lse, l_log, l_expectation, l_second, INVARIANCE, SECOND
            )
            gradient = tl.dot(weight.to(streamed.dtype), streamed, gradient, input_precision=PRECISION)
        for step in range(cold):
            column = tl.where(step < special, start + step, width // BN) * BN
            wanted = wanted_columns(ids, column, images, width, SAMPLED, BN)
            mine, streamed = logits_of(own, online, row, columns, own_column + column, c, shift, P, BD, BN, PRECISION)
            theirs = mine
            if INVARIANCE:
                theirs, _ = logits_of(
                    other, online, other_row, columns, other_column + column, c, shift, P, BD, BN, PRECISION
                )
            if P > BD:
                streamed = load_tile(columns + piece * BD, own_column + column, 0, P, BN, BD, False)
            weight = _weights(
                mine, theirs, lse, constant, their_lse, l_log, l_expectation, l_second, INVARIANCE, SECOND
            )
            weight = tl.where(wanted & real[:, None], weight, 0.0).to(streamed.dtype)
            gradient = tl.dot(weight, streamed, gradient, input_precision=PRECISION)
    length = tl.cast(pairs // LARGE * rows_padded, tl.int64)
    target = split * length + row + tl.arange(0, BM)
    tl.store(partial + target[:, None] * P + piece * BD + tl.arange(0, BD)[None, :], gradient)


@triton.jit
def view_gradient_kernel(
    partial,
    x,
    factor,
    target,
    coefficient,
    grad,
    out,
    scale,
    rescale,
    splits,
    batch,
    rows_padded,
    LARGE: tl.constexpr,
    VIEWS: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    SMALLEST: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Reduce the sums, add the positives in fp32, then dx = (dz − z (z·dz)) / ‖x‖ · grad · scale; program (rows, view).

    coefficient [pairs, B] of each image's own target rows.
    """
    i = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < batch
    column = tl.arange(0, P)
    gradient = tl.zeros((ROWS, P), tl.float32)
    for split in range(splits):
        at = tl.cast(split * VIEWS + i, tl.int64) * rows_padded + row
        gradient += tl.load(partial + at[:, None] * P + column[None, :], mask=real[:, None], other=0.0)
    gradient *= rescale
    for j in range(LARGE):
        theirs = load_unit(target, j * batch + row, real, D, P, SMALLEST)
        weight = tl.load(coefficient + tl.cast(i * LARGE + j, tl.int64) * batch + row, mask=real, other=0.0)
        gradient += weight[:, None] * theirs
    gradient *= tl.load(grad) * scale
    z = load_unit_rows(x, factor, i * batch + row, real, D, P, True)
    along = tl.sum(gradient * z, 1)
    length = tl.load(factor + i * batch + row, mask=real, other=0.0)
    gradient = (gradient - along[:, None] * z) * length[:, None]
    pointers = out + tl.cast(i * batch + row, tl.int64)[:, None] * D + column[None, :]
    tl.store(pointers, gradient.to(out.dtype.element_ty), mask=real[:, None] & (column < D)[None, :])
