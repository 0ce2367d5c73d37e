"""Sinkhorn on stored scores: N iterations in N + 1 reads.

Everything is kept in the logarithm, base 2: x = s·c with c = log2(e)/ε, potentials f_k and g_b, and codes
2^(x + f + g). A row of scores fits on chip, so that one pass does both halves of an iteration:

    first      per prototype the largest x and Σ_b 2^(x − largest), from which f
    iterate    row by row g_b = −log2 Σ_k 2^(x + f), relative to the row's largest term; at once Σ_b 2^(x + f + g),
               by which f moves; the last pass writes the codes instead

After the first pass Σ_b 2^(x + f) = 1 for every prototype, so some row gives it at least 1/B, and that row's own sum is
at most K: no sum of a later pass is below 1/(B·K), whatever the scores.

A potential is stored as base and mass, f = base − log2(mass·scale), so that sums may come from several ranks. Sums of
rows go to one slot a program and are reduced by a launch of their own: deterministic, no atomics. A prototype without
any finite score has mass 0, and gets none.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Stands for −∞; far below LOWEST, where running maxima begin.
EXCLUDED = tl.constexpr(-1e30)
LOWEST = tl.constexpr(-1e29)


@triton.jit
def potential_of(base, mass, scale):
    some = mass > 0.0
    return tl.where(some, base - tl.log2(tl.where(some, mass * scale, 1.0)), EXCLUDED)


@triton.jit
def load_scores(scores, row, column, rows, c, K: tl.constexpr):
    """x [rows, columns] = s·c; −∞ (as EXCLUDED) beyond either end."""
    m = (row < rows)[:, None] & (column < K)[None, :]
    s = tl.load(scores + row.to(tl.int64)[:, None] * K + column[None, :], mask=m, other=float("-inf"))
    return tl.maximum(s.to(tl.float32) * c, EXCLUDED)


@triton.jit
def first_kernel(
    scores, partial, rows, share, slot, problems, c, K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """Program (split, block of prototypes, problem): largest x and Σ 2^(x − largest) of its share of the rows.

    partial [slots, 2, problems, K], from `slot` on.
    """
    split, problem = tl.program_id(0), tl.program_id(2)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    scores += problem.to(tl.int64) * rows * K
    top = tl.full((BLOCK,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(split * share, tl.minimum(split * share + share, rows), ROWS):
        x = load_scores(scores, start + tl.arange(0, ROWS), column, rows, c, K)
        higher = tl.maximum(top, tl.max(x, 0))
        total = total * tl.exp2(top - higher) + tl.sum(tl.exp2(x - higher[None, :]), 0)
        top = higher
    at = partial + ((slot + split).to(tl.int64) * 2 * problems + problem) * K + column
    tl.store(at, top, mask=column < K)
    tl.store(at + problems * K, total, mask=column < K)


@triton.jit
def iterate_kernel(
    scores,
    base,
    mass,
    moved,
    partial,
    codes,
    rows,
    share,
    slot,
    problems,
    c,
    scale,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
    WRITE: tl.constexpr,
):
    """Program (split, problem): both halves of an iteration for its share of the rows, each row read once.

    A row is CHUNKS pieces of BLOCK scores. partial [slots, problems, K]: Σ_b 2^(x + f + g). The program of slot 0
    stores f to `moved`, the base of the next launch. With WRITE the codes are stored instead of sums.
    """
    split, problem = tl.program_id(0), tl.program_id(1)
    scores += problem.to(tl.int64) * rows * K
    codes += problem.to(tl.int64) * rows * K
    line = tl.arange(0, BLOCK)
    potentials = ()
    sums = ()
    for i in tl.static_range(CHUNKS):
        column = i * BLOCK + line
        at = problem * K + column
        f = potential_of(
            tl.load(base + at, mask=column < K, other=0.0), tl.load(mass + at, mask=column < K, other=0.0), scale
        )
        if not WRITE and slot + split == 0:
            tl.store(moved + at, f, mask=column < K)
        potentials = potentials + (f,)  # type: ignore[assignment]  # noqa: RUF005
        sums = sums + (tl.zeros((BLOCK,), tl.float32),)  # type: ignore[assignment]  # noqa: RUF005
    for start in range(split * share, tl.minimum(split * share + share, rows), ROWS):
        row = start + tl.arange(0, ROWS)
        logits = ()
        top = tl.full((ROWS, BLOCK), 3.0 * EXCLUDED, tl.float32)
        for i in tl.static_range(CHUNKS):
            y = load_scores(scores, row, i * BLOCK + line, rows, c, K) + potentials[i][None, :]
            logits = logits + (y,)  # type: ignore[assignment]  # noqa: RUF005
            top = tl.maximum(top, y)
        highest = tl.max(top, 1)[:, None]
        total = tl.zeros((ROWS, BLOCK), tl.float32)
        terms = ()
        for i in tl.static_range(CHUNKS):
            e = tl.exp2(logits[i] - highest)
            terms = terms + (e,)  # type: ignore[assignment]  # noqa: RUF005
            total += e
        v = tl.where(row < rows, 1.0 / tl.sum(total, 1), 0.0)[:, None]
        added = ()
        for i in tl.static_range(CHUNKS):
            if WRITE:
                column = i * BLOCK + line
                m = (row < rows)[:, None] & (column < K)[None, :]
                tl.store(codes + row.to(tl.int64)[:, None] * K + column[None, :], terms[i] * v, mask=m)
            else:
                added = added + (sums[i] + tl.sum(terms[i] * v, 0),)  # type: ignore[assignment]  # noqa: RUF005
        if not WRITE:
            sums = added
    if not WRITE:
        for i in tl.static_range(CHUNKS):
            column = i * BLOCK + line
            at = ((slot + split).to(tl.int64) * problems + problem) * K + column
            tl.store(partial + at, sums[i], mask=column < K)


@triton.jit
def reduce_kernel(
    partial,
    base,
    mass,
    slots,
    padded,
    real,
    LENGTH: tl.constexpr,
    FIRST: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum the slots of partial [slots, LENGTH]; with FIRST those of [slots, 2, LENGTH], relative to the largest.

    Numbers `real` to `padded` of every `padded` are no prototypes or rows: their mass is 0. base is written with FIRST.
    """
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = (at < LENGTH)[None, :]
    top = tl.full((BLOCK,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, slots, SLOTS):
        slot = (start + tl.arange(0, SLOTS))[:, None]
        m = (slot < slots) & inside
        if FIRST:
            from_slot = partial + slot.to(tl.int64) * 2 * LENGTH + at[None, :]
            tops = tl.load(from_slot, mask=m, other=LOWEST)
            higher = tl.maximum(top, tl.max(tops, 0))
            sums = tl.load(from_slot + LENGTH, mask=m, other=0.0) * tl.exp2(tops - higher[None, :])
            total = total * tl.exp2(top - higher) + tl.sum(sums, 0)
            top = higher
        else:
            total += tl.sum(tl.load(partial + slot.to(tl.int64) * LENGTH + at[None, :], mask=m, other=0.0), 0)
    total = tl.where(at % padded < real, total, 0.0)
    tl.store(mass + at, total, mask=at < LENGTH)
    if FIRST:
        tl.store(base + at, -top, mask=at < LENGTH)
