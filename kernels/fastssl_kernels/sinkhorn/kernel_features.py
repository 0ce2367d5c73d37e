"""Sinkhorn from features: scores are products, made again where they are needed and never stored.

Both halves of an iteration are the same sum, with rows and prototypes exchanged:

    f_k = −log2 Σ_b 2^(x_bk + g_b),   g_b = −log2 Σ_k 2^(x_bk + f_k),   x = c·z_b·w_k

so that one kernel, whose owner is a tile of prototypes or of rows, makes 2N launches and a second writes the codes.
A whole row of scores would have to stay on chip to do with N + 1 products: 128 rows of 3,000 are 1.5 MB.

In the first iteration sums are relative to a running maximum. From then on they are relative to the last potential, and
lie between 1/(B·K) and a power of B·K.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..tile_kernel import load_tile, more_pieces
from .kernel import LOWEST, potential_of


@triton.jit
def resolve_kernel(base, mass, potential, scale, length, BLOCK: tl.constexpr):
    """potential ← base − log2(mass·scale), EXCLUDED where there is no mass."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = at < length
    value = potential_of(tl.load(base + at, mask=m, other=0.0), tl.load(mass + at, mask=m, other=0.0), scale)
    tl.store(potential + at, value, mask=m)


@triton.jit
def log_sum_kernel(
    rows,
    columns,
    own_potential,
    other_potential,
    partial,
    c,
    slot,
    problems,
    rows_padded,
    columns_padded,
    rows_problem,
    columns_problem,
    P: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    ONLINE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (tile, split, problem): Σ_j 2^(x_ij + p_j) of a tile of rows over a share of the columns.

    ONLINE: partial [slots, 2, problems, rows_padded], largest and sum relative to it; else [slots, problems,
    rows_padded], relative to −own potential. Padding has potential EXCLUDED.
    rows_problem, columns_problem: numbers from one problem's rows to the next's, 0 where problems share them.
    """
    tile, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    problem = tl.program_id(2).to(tl.int64)
    rows += problem * rows_problem
    columns += problem * columns_problem
    inside = problem * rows_padded + tile * BM + tl.arange(0, BM)
    own = load_tile(rows, tile * BM, 0, P, BM, BD, False)
    top = tl.full((BM,), LOWEST, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    if not ONLINE:
        potential = tl.load(own_potential + inside)
    steps = columns_padded // BN
    chunk = tl.cdiv(steps, splits)
    for step in range(split * chunk, tl.minimum(split * chunk + chunk, steps)):
        streamed = load_tile(columns, step * BN, 0, P, BN, BD, False)
        other = tl.load(other_potential + problem * columns_padded + step * BN + tl.arange(0, BN))
        product = tl.dot(own, tl.trans(streamed), input_precision=PRECISION)
        product = more_pieces(product, rows, tile * BM, columns, step * BN, 0, P, BD, False, PRECISION)
        logits = product * c + other[None, :]
        if ONLINE:
            higher = tl.maximum(top, tl.max(logits, 1))
            total = total * tl.exp2(top - higher) + tl.sum(tl.exp2(logits - higher[:, None]), 1)
            top = higher
        else:
            total += tl.sum(tl.exp2(logits + potential[:, None]), 1)
    length = problems.to(tl.int64) * rows_padded
    if ONLINE:
        tl.store(partial + (slot + split) * 2 * length + inside, top)
        tl.store(partial + (slot + split) * 2 * length + length + inside, total)
    else:
        tl.store(partial + (slot + split) * length + inside, total)


@triton.jit
def write_kernel(
    rows,
    columns,
    own_potential,
    other_potential,
    codes,
    c,
    real_rows,
    rows_padded,
    columns_padded,
    columns_problem,
    K: tl.constexpr,
    P: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Codes [problems, real_rows, K] = 2^(x + f + g), by the products of `log_sum_kernel`: rows sum to 1."""
    row, column, problem = tl.program_id(0) * BM, tl.program_id(1) * BN, tl.program_id(2).to(tl.int64)
    rows += problem * rows_padded * P
    columns += problem * columns_problem
    own = load_tile(rows, row, 0, P, BM, BD, False)
    streamed = load_tile(columns, column, 0, P, BN, BD, False)
    product = tl.dot(own, tl.trans(streamed), input_precision=PRECISION)
    product = more_pieces(product, rows, row, columns, column, 0, P, BD, False, PRECISION)
    o_row, o_column = row + tl.arange(0, BM), column + tl.arange(0, BN)
    g = tl.load(own_potential + problem * rows_padded + o_row)
    f = tl.load(other_potential + problem * columns_padded + o_column)
    target = (problem * real_rows + o_row)[:, None] * K + o_column[None, :]
    m = (o_row < real_rows)[:, None] & (o_column < K)[None, :]
    tl.store(codes + target, tl.exp2(product * c + f[None, :] + g[:, None]), mask=m)
