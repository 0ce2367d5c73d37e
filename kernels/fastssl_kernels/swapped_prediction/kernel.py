"""SwAV's loss from features: no score is ever stored.

A logit is l = s·c in units of log 2, c = log2(e)/τ. With w_r = Σ_k t_rk of the target t of row r (the codes of other
crops, summed) and p = softmax(l),

    loss_r = w_r lse_r − Σ_k t_rk s_rk / τ,
    dloss_r/dz_r = (w_r Σ_k p_rk w_k − Σ_k t_rk w_k) / τ,     dloss/dw_k = Σ_r (w_r p_rk − t_rk) z_r / τ.

All that the codes contribute is Σ_k q_bk w_k, once a code and not once a crop, and its transpose Σ_b q_bk (Σ_v z_vb):

    code_sums_kernel       reads the codes, once: Σ_k q_bk w_k and Σ_k q_bk
    predict_kernel         streams the prototypes: lse_r and Σ_k p_rk w_k
    finish_kernel          losses and the gradient of z, in fp32 from z as it came; lse − log2 w, for
    prototype_kernel       streams rows, then codes: the gradient of the prototypes

Rows and prototypes are in padded layout (`operand`): zeros beyond the last, which masks of the tail tile, weights of 0
and masked loads of codes keep out. Widths above BD go in pieces of BD, each a program.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..tile_kernel import load_tile, more_pieces

# A logit that must not count; far below LOWEST, where running maxima begin.
EXCLUDED = tl.constexpr(-1e30)
LOWEST = tl.constexpr(-1e29)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_codes(codes, row, rows, column, K: tl.constexpr):
    m = (row < rows)[:, None] & (column < K)[None, :]
    return tl.load(codes + row.to(tl.int64)[:, None] * K + column[None, :], mask=m, other=0.0)


@triton.jit
def code_sums_kernel(
    codes,
    columns,
    sums,
    mass,
    rows,
    K: tl.constexpr,
    P: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (tile, piece): sums [rows, P] = Σ_k q_k w_k and mass [rows] = Σ_k q_k of codes [rows, K]."""
    piece = tl.program_id(1)
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    gathered = tl.zeros((BM, BD), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    for start in range(0, K, BN):
        q = load_codes(codes, row, rows, start + tl.arange(0, BN), K)
        streamed = load_tile(columns + piece * BD, start, 0, P, BN, BD, False)
        total += tl.sum(q.to(tl.float32), 1)
        gathered = tl.dot(q.to(streamed.dtype), streamed, gathered, input_precision=PRECISION)
    if piece == 0:
        tl.store(mass + row, total, mask=row < rows)
    target = sums + row.to(tl.int64)[:, None] * P + piece * BD + tl.arange(0, BD)[None, :]
    tl.store(target, gathered, mask=(row < rows)[:, None])


@triton.jit
def _add(
    own,
    rows,
    row,
    columns,
    column,
    piece,
    c,
    top,
    total,
    gathered,
    K: tl.constexpr,
    P: tl.constexpr,
    BD: tl.constexpr,
    BN: tl.constexpr,
    MASKED: tl.constexpr,
    GATHER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Take a tile of prototypes into the running sums of `predict_kernel`."""
    streamed = load_tile(columns, column, 0, P, BN, BD, False)
    product = tl.dot(own, tl.trans(streamed), input_precision=PRECISION)
    product = more_pieces(product, rows, row, columns, column, 0, P, BD, False, PRECISION)
    logits = product * c
    if MASKED:
        logits = tl.where((column + tl.arange(0, BN) < K)[None, :], logits, EXCLUDED)
    higher = tl.maximum(top, tl.max(logits, 1))
    rescale = tl.exp2(top - higher)
    exps = tl.exp2(logits - higher[:, None])
    total = total * rescale + tl.sum(exps, 1)
    if GATHER:
        if P > BD:
            streamed = load_tile(columns + piece * BD, column, 0, P, BN, BD, False)
        gathered = tl.dot(exps.to(streamed.dtype), streamed, gathered * rescale[:, None], input_precision=PRECISION)
    return higher, total, gathered


@triton.jit
def predict_kernel(
    rows,
    columns,
    lse,
    predicted,
    c,
    K: tl.constexpr,
    P: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    GATHER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (tile, piece): lse [rows] in log 2 and, with GATHER, predicted [rows, P] = Σ_k p_k w_k."""
    row, piece = tl.program_id(0) * BM, tl.program_id(1)
    own = load_tile(rows, row, 0, P, BM, BD, False)
    top = tl.full((BM,), LOWEST, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    gathered = tl.zeros((BM, BD), tl.float32)
    for step in range(K // BN):
        top, total, gathered = _add(
            own, rows, row, columns, step * BN, piece, c, top, total, gathered, K, P, BD, BN, False, GATHER, PRECISION
        )
    if K % BN != 0:
        top, total, gathered = _add(
            own, rows, row, columns, K // BN * BN, piece, c, top, total, gathered, K, P, BD, BN, True, GATHER, PRECISION
        )
    inside = row.to(tl.int64) + tl.arange(0, BM)
    if piece == 0:
        tl.store(lse + inside, top + tl.log2(total))
    if GATHER:
        target = predicted + inside[:, None] * P + piece * BD + tl.arange(0, BD)[None, :]
        tl.store(target, gathered / total[:, None])


@triton.jit
def finish_kernel(
    z,
    lse,
    predicted,
    sums,
    mass,
    losses,
    gradient,
    shifted,
    crops,
    batch,
    temperature,
    scale,
    rows_padded,
    ASSIGN: tl.constexpr,
    CODES: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    GATHER: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Row losses [V·B], gradient [V·B, D] of the sum of losses times `scale`, and lse − log2 w for `prototype_kernel`.

    ASSIGN: the crop of each code, eight bits each. shifted [rows_padded]: excludes rows without weight, and padding.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < crops * batch
    crop, image = row // batch, row % batch
    column = tl.arange(0, P)
    inside = real[:, None] & (column < D)[None, :]
    weight = tl.zeros((ROWS,), tl.float32)
    target = tl.zeros((ROWS, P), tl.float32)
    for i in tl.static_range(CODES):
        other = real & (crop != (ASSIGN >> 8 * i) % 256)
        at = (i * batch + image).to(tl.int64)
        weight += tl.load(mass + at, mask=other, other=0.0)
        target += tl.load(sums + at[:, None] * P + column[None, :], mask=other[:, None], other=0.0)
    own = tl.load(lse + row, mask=real, other=0.0)
    features = tl.load(z + row.to(tl.int64)[:, None] * D + column[None, :], mask=inside, other=0.0).to(tl.float32)
    losses_here = weight * own * LN2 - tl.sum(features * target, 1) / temperature
    tl.store(losses + row, losses_here, mask=real)
    some = weight > 0.0
    spread = tl.where(some, own - tl.log2(tl.where(some, weight, 1.0)), -EXCLUDED)
    tl.store(shifted + row, spread, mask=row < rows_padded)
    if GATHER:
        at = predicted + row.to(tl.int64)[:, None] * P + column[None, :]
        away = weight[:, None] * tl.load(at, mask=real[:, None], other=0.0) - target
        tl.store(gradient + row.to(tl.int64)[:, None] * D + column[None, :], away * scale, mask=inside)


@triton.jit
def prototype_kernel(
    columns,
    rows,
    shifted,
    codes,
    others,
    partial,
    c,
    row_tiles,
    code_rows,
    code_tiles,
    columns_padded,
    K: tl.constexpr,
    P: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (tile of prototypes, split, piece): its share of Σ_r w_r p_rk z_r − Σ_b q_bk others_b.

    others [code_tiles·BN, P]: for every row of codes the sum of the features that they are compared with.
    partial [splits, columns_padded, P].
    """
    owned, split, piece = tl.program_id(0) * BM, tl.program_id(1), tl.program_id(2)
    splits = tl.num_programs(1)
    own = load_tile(columns, owned, 0, P, BM, BD, False)
    gathered = tl.zeros((BM, BD), tl.float32)
    chunk = tl.cdiv(code_tiles, splits)
    for step in range(split * chunk, tl.minimum(split * chunk + chunk, code_tiles)):
        row = step * BN + tl.arange(0, BN)
        q = load_codes(codes, row, code_rows, owned + tl.arange(0, BM), K)
        streamed = load_tile(others + piece * BD, step * BN, 0, P, BN, BD, False)
        gathered = tl.dot(tl.trans(-q).to(streamed.dtype), streamed, gathered, input_precision=PRECISION)
    chunk = tl.cdiv(row_tiles, splits)
    for step in range(split * chunk, tl.minimum(split * chunk + chunk, row_tiles)):
        streamed = load_tile(rows, step * BN, 0, P, BN, BD, False)
        spread = tl.load(shifted + step * BN + tl.arange(0, BN))
        product = tl.dot(own, tl.trans(streamed), input_precision=PRECISION)
        product = more_pieces(product, columns, owned, rows, step * BN, 0, P, BD, False, PRECISION)
        shares = tl.exp2(product * c - spread[None, :])
        if P > BD:
            streamed = load_tile(rows + piece * BD, step * BN, 0, P, BN, BD, False)
        gathered = tl.dot(shares.to(streamed.dtype), streamed, gathered, input_precision=PRECISION)
    inside = split.to(tl.int64) * columns_padded + owned + tl.arange(0, BM)
    tl.store(partial + inside[:, None] * P + piece * BD + tl.arange(0, BD)[None, :], gathered)
