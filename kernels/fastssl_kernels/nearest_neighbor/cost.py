"""The least work of a lookup of B rows among K rows of width D, and the work of the kernels, as formulas."""

from __future__ import annotations

from typing import NamedTuple

from ..tile import Tile, padded_rows, padded_width


class Cost(NamedTuple):
    """Bytes moved and FLOPs of matrix products."""

    bytes: int
    flops: int


def floor(batch: int, queue: int, width: int, *, itemsize: int = 2) -> Cost:
    """The queue and the rows are read once, the neighbours written; one product."""
    return Cost((queue + 2 * batch) * width * itemsize, 2 * batch * queue * width)


def unit_rows_bytes(batch: int, width: int, *, z_itemsize: int, itemsize: int) -> int:
    """Rows are read once; unit rows in padding and a factor a row are written."""
    return batch * width * z_itemsize + padded_rows(batch) * padded_width(width) * itemsize + 4 * batch


def scan_cost(batch: int, queue: int, width: int, tile: Tile, *, splits: int, every: bool, itemsize: int = 2) -> Cost:
    """`scan_kernel`, loads and stores of all programs (most are served by the level-2 cache)."""
    rows, tiles = padded_rows(batch), -(-queue // tile.streamed)
    owners, pieces = rows // tile.owner, -(-width // tile.piece)
    own = owners * tile.owner * tile.piece * (splits + tiles * (pieces - 1)) * itemsize
    streamed = owners * queue * width * itemsize
    stored = (tiles if every else splits) * rows * 8
    return Cost(own + streamed + stored, owners * tiles * 2 * tile.owner * tile.streamed * pieces * tile.piece)


def pick_bytes(batch: int, width: int, k: int, tile: Tile, *, slots: int, z_itemsize: int, itemsize: int) -> int:
    """`pick_kernel` where every tile of the queue is a full one."""
    picked = min(k, slots)
    row = 4 + slots * 8 + picked * width * (z_itemsize + tile.streamed * itemsize)
    found = 8 + 4 + width * (itemsize + z_itemsize)
    return batch * (row + k * found)
