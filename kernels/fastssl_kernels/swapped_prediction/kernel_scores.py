"""SwAV's loss from scores that exist: a read of scores and target forward, another and a write backward.

loss_r = w_r lse_r − Σ_k t_rk s_rk / τ,   dloss_r/ds_rk = (w_r p_rk − t_rk) / τ,   w_r = Σ_k t_rk
"""

from __future__ import annotations

import triton
import triton.language as tl

from .kernel import EXCLUDED, LN2, LOWEST


@triton.jit
def load_both(scores, target, row, column, rows, c, K: tl.constexpr):
    """Logits s·c in log 2 (EXCLUDED beyond either end) and targets (there 0), fp32."""
    m = (row < rows)[:, None] & (column < K)[None, :]
    at = row.to(tl.int64)[:, None] * K + column[None, :]
    x = tl.load(scores + at, mask=m, other=0.0).to(tl.float32) * c
    return tl.where(m, x, EXCLUDED), tl.load(target + at, mask=m, other=0.0).to(tl.float32)


@triton.jit
def code_cross_entropy_kernel(
    scores, target, losses, statistics, rows, c, K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """Program: ROWS row losses; statistics [3, rows]: largest logit, lse beyond it, w.

    Maxima run lane by lane until the end, and Σ t·l relative to them: large scores keep their digits.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    top = tl.full((ROWS, BLOCK), LOWEST, tl.float32)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    cross = tl.zeros((ROWS, BLOCK), tl.float32)
    weight = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, K, BLOCK):
        x, t = load_both(scores, target, row, start + tl.arange(0, BLOCK), rows, c, K)
        higher = tl.maximum(top, x)
        total = total * tl.exp2(top - higher) + tl.exp2(x - higher)
        cross += weight * (top - higher) + t * (x - higher)
        weight += t
        top = higher
    highest = tl.max(top, 1)
    below = top - highest[:, None]
    log_sum = tl.log2(tl.sum(total * tl.exp2(below), 1))
    mass = tl.sum(weight, 1)
    tl.store(losses + row, (mass * log_sum - tl.sum(cross + weight * below, 1)) * LN2, mask=row < rows)
    tl.store(statistics + row, highest, mask=row < rows)
    tl.store(statistics + rows + row, log_sum, mask=row < rows)
    tl.store(statistics + 2 * rows + row, mass, mask=row < rows)


@triton.jit
def code_cross_entropy_backward_kernel(
    grad,
    scores,
    target,
    statistics,
    result,
    rows,
    c,
    temperature,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """result [rows, K] ← gradient of the scores for the gradients `grad` [rows] of the row losses."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m = row < rows
    scale = tl.load(grad + row, mask=m, other=0.0) / temperature
    highest = tl.load(statistics + row, mask=m, other=0.0)
    log_sum = tl.load(statistics + rows + row, mask=m, other=0.0)
    mass = tl.load(statistics + 2 * rows + row, mask=m, other=0.0)
    for start in range(0, K, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x, t = load_both(scores, target, row, column, rows, c, K)
        gradient = (mass[:, None] * tl.exp2(x - highest[:, None] - log_sum[:, None]) - t) * scale[:, None]
        at = result + row.to(tl.int64)[:, None] * K + column[None, :]
        tl.store(at, gradient.to(result.dtype.element_ty), mask=m[:, None] & (column < K)[None, :])
