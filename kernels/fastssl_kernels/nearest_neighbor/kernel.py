"""Nearest neighbours in two passes: which tile of the queue wins, then which of its rows.

Carrying the index of the largest score through the hot loop costs two more instructions a score. The first pass
therefore keeps of a tile of scores only each row's maximum, and of all tiles the one with the largest; the second
computes that one tile again, in fp32 and with the row as exact as it came, and only there asks for the index.

More than one neighbour: the k nearest rows lie in the k tiles with the largest maxima, so the first pass writes the
maximum of every tile (one number for a tile's 64 or 128 scores) and the second takes k tiles.

A score and where it was found travel in one integer that orders like the pair,

    key = order(score) · 2^32 + (2^32 − 1 − place)

the score's bits made monotone above, the place reversed below: the largest key is the largest score at its first place.
Splits merge by the maximum of their keys, whatever order they ran in.
"""

from __future__ import annotations

import triton
import triton.language as tl

LAST = tl.constexpr((1 << 32) - 1)
# Below every key; the 2^31 numbers above it are no keys either.
LEAST = tl.constexpr(-(1 << 63))


@triton.jit
def monotone(bits):
    """int32 bits of a float <-> an int32 that orders as the float does; its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def pack(score, place):
    """Keys of fp32 scores at places below 2^32; NaN counts as −∞, and −0 as 0."""
    score = tl.where(score == score, score, float("-inf")) + 0.0
    return (monotone(score.to(tl.int32, bitcast=True)).to(tl.int64) << 32) | (LAST - tl.cast(place, tl.int64))


@triton.jit
def place_of(key):
    return LAST - (key & LAST)


@triton.jit
def score_of(key):
    return monotone((key >> 32).to(tl.int32)).to(tl.float32, bitcast=True)


@triton.jit
def insert(best, keys):
    """The largest numbers of `best` and `keys` together, as many as `best` has; they need not be in order."""
    largest, smallest = tl.max(keys, 0), tl.min(best, 0)
    while largest > smallest:
        best = tl.where(best == smallest, largest, best)
        keys = tl.where(keys == largest, LEAST, keys)
        largest, smallest = tl.max(keys, 0), tl.min(best, 0)
    return best


@triton.jit
def load_piece(x, start, stop, piece, D: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr):
    """Columns piece..piece + WIDTH of rows start..start + ROWS of x [., D]; zeros beyond D and, if MASKED, `stop`."""
    row, column = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    pointers = x + tl.cast(start, tl.int64) * D + piece + (row[:, None] * D + column[None, :])
    if MASKED:
        inside = (start + row < stop)[:, None] & (piece + column < D)[None, :]
        return tl.load(pointers, mask=inside, other=0.0)
    if D % WIDTH:
        return tl.load(pointers, mask=(piece + column < D)[None, :], other=0.0)
    return tl.load(pointers)


@triton.jit
def cosines(
    own,
    z,
    row,
    queue,
    column,
    length,
    D: tl.constexpr,
    P: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Scores [BM, BN] of rows from `row` on and queue rows from `column` on; `own` is the first piece of the rows."""
    streamed = load_piece(queue, column, length, 0, D, BN, BD, MASKED)
    score = tl.dot(own, tl.trans(streamed), input_precision=PRECISION)
    if D > BD:
        for piece in range(BD, D, BD):
            left = load_piece(z, row, 0, piece, P, BM, BD, False)
            right = load_piece(queue, column, length, piece, D, BN, BD, MASKED)
            score = tl.dot(left, tl.trans(right), score, input_precision=PRECISION)
    return score


@triton.jit
def scan_kernel(
    z,
    queue,
    keys,
    length,
    chunk,
    EVERY: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Which tiles of `queue` [length, D] have the largest score with rows of `z` [rows, P], its unit rows in padding.

    Program (tile of rows, split) takes `chunk` full tiles of the queue; the last split also an unfinished one.
    keys int64, with the number of a tile as the place: [splits, rows] the best tile of each split, or if EVERY
    [tiles, rows] all of them.
    """
    split, row = tl.program_id(1), tl.program_id(0) * BM
    rows = tl.cast(tl.num_programs(0), tl.int64) * BM
    slot = keys + row + tl.arange(0, BM)
    own = load_piece(z, row, 0, 0, P, BM, BD, False)
    top = tl.full((BM,), float("-inf"), tl.float32)
    winner = tl.zeros((BM,), tl.int32)
    full, low = length // BN, split * chunk
    for tile in range(low, tl.minimum(low + chunk, full)):
        score = cosines(own, z, row, queue, tile * BN, length, D, P, BD, BM, BN, False, PRECISION)
        peak = tl.max(score, 1)
        if EVERY:
            tl.store(slot + tile * rows, pack(peak, tile))
        else:
            winner = tl.where(peak > top, tile, winner)
            top = tl.maximum(top, peak)
    if (split == tl.num_programs(1) - 1) & (full * BN < length):
        score = cosines(own, z, row, queue, full * BN, length, D, P, BD, BM, BN, True, PRECISION)
        real = full * BN + tl.arange(0, BN) < length
        peak = tl.max(tl.where(real[None, :], score, float("-inf")), 1)
        if EVERY:
            tl.store(slot + full * rows, pack(peak, full))
        else:
            winner = tl.where(peak > top, full, winner)
            top = tl.maximum(top, peak)
    if not EVERY:
        tl.store(slot + split * rows, pack(top, winner))


@triton.jit
def pick_kernel(
    x,
    factor,
    queue,
    keys,
    neighbors,
    index,
    similarity,
    rows,
    slots,
    length,
    k,
    D: tl.constexpr,
    W: tl.constexpr,
    BN: tl.constexpr,
    LIST: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """The k nearest rows of one row of x [B, D], from `keys` [slots, rows] of `scan_kernel`; a program a row.

    neighbors [B, k, D], index [B, k] and similarity [B, k], nearest first. LIST ≥ k and SLOTS are powers of two; the
    width is taken W columns at a time.
    """
    row = tl.cast(tl.program_id(0), tl.int64)
    column = tl.arange(0, W)
    scale = tl.load(factor + row)
    tiles = LEAST + 1 + tl.arange(0, LIST).to(tl.int64)
    for start in range(0, slots, SLOTS):
        slot = start + tl.arange(0, SLOTS)
        at = keys + slot.to(tl.int64) * rows + row
        tiles = insert(tiles, tl.load(at, mask=slot < slots, other=LEAST))
    best = LEAST + 1 + tl.arange(0, LIST).to(tl.int64)
    for _ in range(tl.minimum(k, slots)):
        key = tl.max(tiles, 0)
        tiles = tl.where(tiles == key, LEAST, tiles)
        first = place_of(key) * BN
        total = tl.zeros((BN, W), tl.float32)
        for piece in range(0, D, W):
            own = tl.load(x + row * D + piece + column, mask=piece + column < D, other=0.0).to(tl.float32) * scale
            theirs = load_piece(queue, first, length, piece, D, BN, W, True).to(tl.float32)
            total += theirs * own[None, :]
        candidate = first + tl.arange(0, BN)
        best = insert(best, tl.where(candidate < length, pack(tl.sum(total, 1), candidate), LEAST))
    for nth in range(k):
        key = tl.max(best, 0)
        best = tl.where(best == key, LEAST, best)
        place = place_of(key)
        tl.store(index + row * k + nth, place)
        tl.store(similarity + row * k + nth, score_of(key))
        for piece in range(0, D, W):
            inside = piece + column < D
            value = tl.load(queue + place * D + piece + column, mask=inside, other=0.0)
            at = neighbors + (row * k + nth) * D + piece + column
            tl.store(at, value.to(neighbors.dtype.element_ty), mask=inside)
