"""The Triton kernels of NT-Xent and InfoNCE: layout of rows, and sums over all logits (the forward pass).

A logit is kept in units of log 2: l = s·c − c with c = log2(e)/τ where the maximum is known (|s| ≤ 1, so l ≤ 0), and
l = s·c where it is tracked (ONLINE). The exponential is then one EX2 and its argument one FFMA.

Layout. A segment of `batch` images is padded with zero rows to `padded` rows, a multiple of every tile; a row is padded
to P numbers, a power of two. Tiles load without masks. Row b of every segment of rows and row `first + b` of every
segment of columns show the same image; such logits (the row itself and its positives) are *excluded* and lie in few
tiles of each segment. A short masked loop does those tiles and the end of a segment; the hot loop has no masks.

Widths above BD go in pieces of BD: products are summed over pieces, a gradient piece is a program of its own.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..tile_kernel import load_tile, more_pieces

# A logit that must not count; far below LOWEST, where running maxima begin.
EXCLUDED = tl.constexpr(-1e30)
LOWEST = tl.constexpr(-1e29)


@triton.jit
def triangle_kernel(
    z,
    partial,
    c,
    batch,
    per_view,
    tiles,
    begin,
    end,
    chunk,
    VIEWS: tl.constexpr,
    P: tl.constexpr,
    BD: tl.constexpr,
    BLOCK: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Row sums of exp over the whole square from half of its tiles; known maximum.

    Program (J, split) owns tile J and streams tiles J + d modulo their number, d up to a half: every two tiles meet
    once, and all programs do the same work. Products are [streamed, owner]: the sums for the streamed tile reduce along
    columns, which one thread holds, and go to the slot of d; those for the owner stay element by element in registers
    until the end (reducing them in every tile costs 192 shuffles). partial [slots, tiles · BLOCK], no two writers:

        end − begin           by distance, for the distances of this launch without excluded logits
        splits                by owner
        (VIEWS − 1) // 2      by distance, for those with; only in the launch where begin = 0

    Distances that are multiples of `per_view` hold the excluded diagonals: the last split does them, masked. It also
    does distance tiles / 2, which both of its tiles compute, each for itself alone.
    """
    tile, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    inside = tl.arange(0, BLOCK)
    length = tl.cast(tiles, tl.int64) * BLOCK
    owned = tile * BLOCK
    owner = load_tile(z, owned, 0, P, BLOCK, BD, False)
    image = tile % per_view * BLOCK + inside
    sums = tl.zeros((BLOCK, BLOCK), tl.float32)
    low = begin + split * chunk
    for step in range(low, tl.minimum(low + chunk, end)):
        distance = step + 1
        if VIEWS > 2:
            distance += step // (per_view - 1)
        other = tile + distance
        other = tl.where(other >= tiles, other - tiles, other)
        cosine = tl.dot(load_tile(z, other * BLOCK, 0, P, BLOCK, BD, False), tl.trans(owner), input_precision=PRECISION)
        cosine = more_pieces(cosine, z, other * BLOCK, z, owned, 0, P, BD, False, PRECISION)
        if EVEN:
            exps = tl.exp2(cosine * c - c)
            theirs = tl.sum(exps, 1)
        else:
            # Padding costs nothing a logit: it enters through the addend of one FFMA and the factor of another.
            shift = tl.where(other % per_view * BLOCK + inside < batch, -c, EXCLUDED)
            exps = tl.exp2(cosine * c + shift[:, None])
            theirs = tl.sum(exps * tl.where(image < batch, 1.0, 0.0)[None, :], 1)
        sums += exps
        tl.store(partial + (step - begin) * length + other * BLOCK + inside, theirs)
    if (begin == 0) & (split == splits - 1):
        cold = VIEWS // 2 + 1
        if VIEWS % 2 == 1:
            cold += 1 - tiles % 2
        for k in range(cold):
            distance = tl.minimum(k * per_view, tiles // 2)
            other = (tile + distance) % tiles
            cosine = tl.dot(
                load_tile(z, other * BLOCK, 0, P, BLOCK, BD, False), tl.trans(owner), input_precision=PRECISION
            )
            cosine = more_pieces(cosine, z, other * BLOCK, z, owned, 0, P, BD, False, PRECISION)
            their_image = other % per_view * BLOCK + inside
            wanted = (their_image < batch)[:, None] & (image < batch)[None, :]
            wanted = wanted & (their_image[:, None] != image[None, :])
            exps = tl.exp2(tl.where(wanted, cosine * c - c, EXCLUDED))
            sums += exps
            if (distance > 0) & (2 * distance != tiles):
                slot = end - begin + splits + k - 1
                tl.store(partial + slot * length + other * BLOCK + inside, tl.sum(exps, 1))
    tl.store(partial + (end - begin + split) * length + owned + inside, tl.sum(sums, 0))


@triton.jit
def column_tiles(image, first, width, EXCLUDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """Which tiles of a segment of columns a tile of rows treats how, its first row being row `image` of a segment.

    -> number of hot tiles; first tile that may hold excluded logits; how many such tiles are full ones; how many there
    are; how many tiles are masked: those and an unfinished last one.
    """
    full, tiles = width // BN, tl.cdiv(width, BN)
    if EXCLUDE:
        start = tl.minimum((first + image) // BN, tiles)
        stop = tl.minimum((first + image + BM - 1) // BN + 1, tiles)
    else:
        start, stop = full, full
    skipped = tl.minimum(stop, full) - tl.minimum(start, full)
    unfinished = tl.where((tiles > full) & (stop <= full), 1, 0)
    return full - skipped, start, skipped, stop - start, stop - start + unfinished


@triton.jit
def _add_logits(
    logits,
    streamed,
    top,
    total,
    weighted,
    attraction,
    ONLINE: tl.constexpr,
    METRICS: tl.constexpr,
    ATTRACT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Take a tile of logits into the running sums of `rectangle_kernel`."""
    if ONLINE:
        before = top
        top = tl.maximum(top, tl.max(logits, 1))
        rescale = tl.exp2(before - top)
        exps = tl.exp2(logits - top[:, None])
        total *= rescale
        if METRICS:
            weighted *= rescale
        if ATTRACT:
            attraction *= rescale[:, None]
    else:
        exps = tl.exp2(logits)
        if METRICS:
            top = tl.maximum(top, tl.max(logits, 1))
    total += tl.sum(exps, 1)
    if METRICS:
        weighted += tl.sum(exps * logits, 1)
    if ATTRACT:
        attraction = tl.dot(exps.to(streamed.dtype), streamed, attraction, input_precision=PRECISION)
    return top, total, weighted, attraction


@triton.jit
def rectangle_kernel(
    rows,
    columns,
    partial,
    attracted,
    c,
    first,
    width,
    columns_padded,
    rows_padded,
    SEGMENTS: tl.constexpr,
    P: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    EXCLUDE: tl.constexpr,
    ONLINE: tl.constexpr,
    METRICS: tl.constexpr,
    ATTRACT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sums of exp of a tile of rows over a share of the columns, SEGMENTS of `width` rows, `columns_padded` apart.

    Program (tile, split, piece). partial [splits, statistics, rows]: Σ exp; with ONLINE or METRICS the largest logit;
    with METRICS Σ exp·l; sums are relative to the largest logit if ONLINE. attracted [splits, rows, P] with ATTRACT:
    Σ exp·column, so that a query's gradient needs no second pass.
    """
    split, splits, piece = tl.program_id(1), tl.num_programs(1), tl.program_id(2)
    row = tl.program_id(0) * BM
    image = row % rows_padded
    own = load_tile(rows, row, 0, P, BM, BD, False)
    top = tl.full((BM,), LOWEST, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    weighted = tl.zeros((BM,), tl.float32)
    attraction = tl.zeros((BM, BD), tl.float32)
    shift = c
    if ONLINE:
        shift = 0.0
    hot, start, skipped, special, cold = column_tiles(image, first, width, EXCLUDE, BM, BN)
    chunk = tl.cdiv(hot, splits)
    for segment in range(SEGMENTS):
        base = segment * columns_padded
        for step in range(split * chunk, tl.minimum(split * chunk + chunk, hot)):
            column = base + (step + tl.where(step >= start, skipped, 0)) * BN
            streamed = load_tile(columns, column, 0, P, BN, BD, False)
            cosine = tl.dot(own, tl.trans(streamed), input_precision=PRECISION)
            cosine = more_pieces(cosine, rows, row, columns, column, 0, P, BD, False, PRECISION)
            if ATTRACT and P > BD:
                streamed = load_tile(columns + piece * BD, column, 0, P, BN, BD, False)
            top, total, weighted, attraction = _add_logits(
                cosine * c - shift, streamed, top, total, weighted, attraction, ONLINE, METRICS, ATTRACT, PRECISION
            )
    if split == splits - 1:
        for step in range(SEGMENTS * cold):
            inside = tl.where(step % cold < special, start + step % cold, width // BN)
            column, stop = step // cold * columns_padded + inside * BN, step // cold * columns_padded + width
            streamed = load_tile(columns, column, stop, P, BN, BD, True)
            cosine = tl.dot(own, tl.trans(streamed), input_precision=PRECISION)
            cosine = more_pieces(cosine, rows, row, columns, column, stop, P, BD, True, PRECISION)
            if ATTRACT and P > BD:
                streamed = load_tile(columns + piece * BD, column, stop, P, BN, BD, True)
            theirs = inside * BN + tl.arange(0, BN)
            wanted = tl.broadcast_to((theirs < width)[None, :], (BM, BN))
            if EXCLUDE:
                wanted = wanted & ((first + image + tl.arange(0, BM))[:, None] != theirs[None, :])
            logits = tl.where(wanted, cosine * c - shift, EXCLUDED)
            top, total, weighted, attraction = _add_logits(
                logits, streamed, top, total, weighted, attraction, ONLINE, METRICS, ATTRACT, PRECISION
            )
    inside = tl.cast(row, tl.int64) + tl.arange(0, BM)
    length = tl.cast(tl.num_programs(0), tl.int64) * BM
    if piece == 0:
        statistics = 1 + (ONLINE or METRICS) + METRICS
        slot = partial + split * statistics * length + inside
        tl.store(slot, total)
        if ONLINE or METRICS:
            tl.store(slot + length, top)
        if METRICS:
            tl.store(slot + 2 * length, weighted)
    if ATTRACT:
        target = (split * length + inside)[:, None] * P + piece * BD + tl.arange(0, BD)[None, :]
        tl.store(attracted + target, attraction)
