"""The backward pass: sums of weighted rows, then positives and the normalisation."""

from __future__ import annotations

import triton
import triton.language as tl

from ..rows_kernel import load_unit_rows
from ..tile_kernel import load_tile, more_pieces
from .kernel import EXCLUDED, column_tiles


@triton.jit
def _weights(logits, own, other, ONLINE: tl.constexpr, OWN: tl.constexpr):
    """exp(l − lse_own) + exp(l − lse_other), or the second term alone; own and other as `finish_kernel` writes them."""
    if ONLINE:
        weight = tl.exp2(logits - other[None, :])
        if OWN:
            weight += tl.exp2(logits - own[:, None])
        return weight
    if OWN:
        return tl.exp2(logits) * (own[:, None] + other[None, :])
    return tl.exp2(logits) * other[None, :]


@triton.jit
def gradient_kernel(
    rows,
    columns,
    own_weight,
    other_weight,
    partial,
    x,
    factor,
    partner,
    partner_factor,
    share,
    grad,
    out,
    c,
    scale,
    rescale,
    first,
    width,
    columns_padded,
    rows_padded,
    batch,
    SEGMENTS: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    OWN: tl.constexpr,
    ONLINE: tl.constexpr,
    NORMALIZE: tl.constexpr,
    FUSED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Σ_j W_ij column_j of a tile of rows over a share of the columns; W as in `_weights`.

    W is symmetric, so this is the whole gradient of NT-Xent and needs no atomics. If FUSED, positives and the
    normalisation follow in registers (`_through_norm`) and `out` [rows, D] is the gradient; else partial
    [splits, rows, P] holds the sums for `through_norm_kernel`.
    """
    split, splits, piece = tl.program_id(1), tl.num_programs(1), tl.program_id(2)
    row = tl.program_id(0) * BM
    image = row % rows_padded
    images = image + tl.arange(0, BM)
    own = load_tile(rows, row, 0, P, BM, BD, False)
    # A row's own weight is that of the column it is.
    position = row // rows_padded * columns_padded + first + images
    mine = tl.load(own_weight + position, mask=images < batch, other=0.0) if OWN else 0.0
    gradient = tl.zeros((BM, BD), tl.float32)
    shift = c
    if ONLINE:
        shift = 0.0
    hot, start, skipped, special, cold = column_tiles(image, first, width, True, BM, BN)
    chunk = tl.cdiv(hot, splits)
    for segment in range(SEGMENTS):
        base = segment * columns_padded
        for step in range(split * chunk, tl.minimum(split * chunk + chunk, hot)):
            column = base + (step + tl.where(step >= start, skipped, 0)) * BN
            streamed = load_tile(columns, column, 0, P, BN, BD, False)
            other = tl.load(other_weight + column + tl.arange(0, BN))
            cosine = tl.dot(own, tl.trans(streamed), input_precision=PRECISION)
            cosine = more_pieces(cosine, rows, row, columns, column, 0, P, BD, False, PRECISION)
            if P > BD:
                streamed = load_tile(columns + piece * BD, column, 0, P, BN, BD, False)
            weight = _weights(cosine * c - shift, mine, other, ONLINE, OWN)
            gradient = tl.dot(weight.to(streamed.dtype), streamed, gradient, input_precision=PRECISION)
    if split == splits - 1:
        for step in range(SEGMENTS * cold):
            inside = tl.where(step % cold < special, start + step % cold, width // BN)
            column = step // cold * columns_padded + inside * BN
            streamed = load_tile(columns, column, 0, P, BN, BD, False)
            theirs = inside * BN + tl.arange(0, BN)
            other = tl.load(other_weight + column + tl.arange(0, BN), mask=theirs < width, other=0.0)
            cosine = tl.dot(own, tl.trans(streamed), input_precision=PRECISION)
            cosine = more_pieces(cosine, rows, row, columns, column, 0, P, BD, False, PRECISION)
            if P > BD:
                streamed = load_tile(columns + piece * BD, column, 0, P, BN, BD, False)
            wanted = (theirs < width)[None, :] & ((first + images)[:, None] != theirs[None, :])
            logits = tl.where(wanted, cosine * c - shift, EXCLUDED)
            weight = _weights(logits, mine, other, ONLINE, OWN)
            gradient = tl.dot(weight.to(streamed.dtype), streamed, gradient, input_precision=PRECISION)
    if FUSED:
        source = row // rows_padded * batch + images
        _through_norm(
            gradient * rescale, source, images < batch, x, factor, partner, partner_factor, share, own_weight, grad,
            out, c, scale, rescale, first, columns_padded, batch, SEGMENTS, D, P, OWN, ONLINE, NORMALIZE,
        )  # fmt: skip
    else:
        length = tl.cast(tl.num_programs(0), tl.int64) * BM
        target = split * length + row + tl.arange(0, BM)
        tl.store(partial + target[:, None] * P + piece * BD + tl.arange(0, BD)[None, :], gradient)


@triton.jit
def _through_norm(
    gradient,
    row,
    real,
    x,
    factor,
    partner,
    partner_factor,
    share,
    weight,
    grad,
    out,
    c,
    scale,
    rescale,
    first,
    columns_padded,
    batch,
    VIEWS: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    OWN: tl.constexpr,
    ONLINE: tl.constexpr,
    NORMALIZE: tl.constexpr,
):
    """Add the positives in fp32, then dx = (dz − z (z·dz)) / ‖x‖ · grad · scale.

    NT-Xent (OWN): the positives are the other views in x. With two views the coefficient −(share_i + share_p) has all
    its digits however well the views agree. InfoNCE: the positive is row i of `partner`, its coefficient −share_i.
    """
    z = load_unit_rows(x, factor, row, real, D, P, NORMALIZE)
    own_share = tl.load(share + row, mask=real, other=0.0)
    if OWN:
        for step in tl.static_range(1, VIEWS):
            positive = (row + step * batch) % (VIEWS * batch)
            other = load_unit_rows(x, factor, positive, real, D, P, NORMALIZE)
            if VIEWS == 2:
                coefficient = -own_share - tl.load(share + positive, mask=real, other=0.0)
            else:
                mine = tl.load(weight + row // batch * columns_padded + first + row % batch, mask=real, other=0.0)
                at = positive // batch * columns_padded + first + positive % batch
                theirs = tl.load(weight + at, mask=real, other=0.0)
                logit = tl.sum(z * other, 1) * c
                if ONLINE:
                    coefficient = (tl.exp2(logit - mine) + tl.exp2(logit - theirs)) * rescale
                else:
                    coefficient = tl.exp2(logit - c) * (mine + theirs) * rescale
                coefficient -= 2.0 / (VIEWS - 1)
            gradient += coefficient[:, None] * other
    else:
        other = load_unit_rows(partner, partner_factor, row, real, D, P, NORMALIZE)
        gradient -= own_share[:, None] * other
    gradient *= tl.load(grad) * scale
    if NORMALIZE:
        along = tl.sum(gradient * z, 1)
        gradient = (gradient - along[:, None] * z) * tl.load(factor + row, mask=real, other=0.0)[:, None]
    column = tl.arange(0, P)
    pointers = out + tl.cast(row, tl.int64)[:, None] * D + column[None, :]
    tl.store(pointers, gradient.to(out.dtype.element_ty), mask=real[:, None] & (column < D)[None, :])


@triton.jit
def through_norm_kernel(
    partial,
    x,
    factor,
    partner,
    partner_factor,
    share,
    weight,
    grad,
    out,
    c,
    scale,
    rescale,
    first,
    columns_padded,
    rows_padded,
    batch,
    splits,
    rows,
    length,
    VIEWS: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    OWN: tl.constexpr,
    ONLINE: tl.constexpr,
    NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """What follows the sums of `gradient_kernel` (partial [splits, length, P]) where it could not do it itself."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < rows
    source = row // batch * rows_padded + row % batch
    gradient = tl.zeros((ROWS, P), tl.float32)
    for split in range(splits):
        at = tl.cast(split, tl.int64) * length + source
        gradient += tl.load(partial + at[:, None] * P + tl.arange(0, P)[None, :], mask=real[:, None], other=0.0)
    _through_norm(
        gradient * rescale, row, real, x, factor, partner, partner_factor, share, weight, grad, out, c, scale, rescale,
        first, columns_padded, batch, VIEWS, D, P, OWN, ONLINE, NORMALIZE,
    )  # fmt: skip
