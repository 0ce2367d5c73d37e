"""The least work of NT-Xent and InfoNCE, and the work of each kernel, as formulas of the shapes.

A product is one multiply-add of two rows for every logit, 2·rows·columns·D FLOPs. The least is half a product forward
(the square is symmetric) and two backward; bytes count every operand once.
"""

from __future__ import annotations

from typing import NamedTuple

from ..tile import Tile, padded_rows, padded_width


class Cost(NamedTuple):
    """Bytes moved, FLOPs of matrix products, exponentials of logits."""

    bytes: int
    flops: int
    exponentials: int

    def __add__(self, other: Cost) -> Cost:  # type: ignore[override]
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))


def nt_xent_floor(batch: int, width: int, *, views: int = 2, itemsize: int = 2) -> tuple[Cost, Cost]:
    """Forward and backward of `nt_xent` on [views·batch, width]: 2.5 products, 1.5 exponentials an entry."""
    rows = views * batch
    forward = Cost(rows * width * itemsize, rows * rows * width, rows * rows // 2)
    backward = Cost(2 * rows * width * itemsize, 4 * rows * rows * width, rows * rows)
    return forward, backward


def info_nce_floor(batch: int, queue: int, width: int, *, itemsize: int = 2) -> Cost:
    """`info_nce` with a queue, loss and gradient of the queries: two products and one read of the queue."""
    logits = batch * queue
    return Cost((queue + 4 * batch) * width * itemsize, 4 * logits * width, logits)


def triangle_cost(batch: int, width: int, tile: Tile, *, views: int, splits: int, itemsize: int) -> Cost:
    """`triangle_kernel`, loads and stores of all programs (most are served by the level-2 cache)."""
    block, wide = tile.owner, padded_width(width)
    tiles = views * padded_rows(batch) // block
    # Distance 0, the distances that two tiles share, and distance tiles / 2, which both compute.
    shared = (tiles - 1) // 2
    computed = tiles * (1 + shared + (tiles + 1) % 2)
    pieces = wide // tile.piece
    loaded = (computed * (2 * pieces - 1) + tiles * splits) * block * tile.piece * itemsize
    stored = (tiles * shared + tiles * splits) * block * 4
    return Cost(loaded + stored, computed * 2 * block * block * wide, computed * block * block)


def gradient_cost(batch: int, width: int, tile: Tile, *, views: int, itemsize: int) -> Cost:
    """The fused `gradient_kernel` of `nt_xent` with two views on whole tiles; x has the dtype of the products."""
    wide, rows = padded_width(width), views * padded_rows(batch)
    owners, steps = rows // tile.owner, rows // tile.streamed
    tiles = owners * steps
    loaded = tiles * (tile.streamed * wide * itemsize + tile.streamed * 4) + owners * tile.owner * (wide * itemsize + 4)
    logits = tiles * tile.owner * tile.streamed
    # Positives and normalisation: own and positive row and factor, own factor again, two shares; the gradient.
    finish = views * batch * (3 * width * itemsize + 5 * 4) + owners * 4
    return Cost(loaded + finish, 4 * logits * wide, logits)
