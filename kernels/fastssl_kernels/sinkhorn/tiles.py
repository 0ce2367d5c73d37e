"""Tiles of Sinkhorn's kernels, chosen from the ledger; nothing is tuned at run time."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..tile import Tile

# Prototypes whose scores fit on chip a row at a time: 4 chunks of 4,096.
WIDEST = 4 * 4096
# A chunk gives every lane of a warp one load of 128 bits.
NARROWEST_CHUNK = 128
# Columns and slots that a program reduces at a time.
REDUCE_BLOCK, REDUCE_SLOTS = 32, 32
# Potentials that a program resolves.
RESOLVE_BLOCK = 512


class Passes(NamedTuple):
    """How passes over stored scores are cut.

    chunk, chunks: a row is `chunks` pieces of `chunk` scores; rows: taken at a time; warps.
    first_rows, first_block: the same for the first pass, which has no sums along rows; its warps are `first_warps`.
    """

    chunk: int
    chunks: int
    rows: int
    warps: int
    first_rows: int
    first_block: int
    first_warps: int


def passes_for(prototypes: int) -> Passes:
    """3,000 prototypes are three chunks of 1,024, and not four."""
    sizes = [1 << power for power in range(7, 13)]
    fitting = [(size * -(-prototypes // size), size) for size in sizes if size * 4 >= prototypes]
    padded, chunk = min(fitting, key=lambda pair: (pair[0], -pair[1]))
    # 12 to 16 scores a thread and row: the registers of two programs a multiprocessor hold them.
    warps = 4 if padded <= 1024 else 8 if padded <= 4096 else 16
    rows = max(1, min(16, warps * 32 * 48 // padded))
    rows = 1 << (rows.bit_length() - 1)
    return Passes(chunk, padded // chunk, rows, warps, 8, min(chunk, 512), 4)


def product_tile(width: int, products: torch.dtype, target: str) -> Tile:
    """The tile of `log_sum_kernel` and `write_kernel` for rows of padded `width`."""
    if products.itemsize == 4:
        tile = Tile(64, 32, 64, 4, 2) if target == "sm_80" else Tile(64, 64, 64, 4, 2 if target != "gfx942" else 1)
    elif target == "sm_80":
        tile = Tile(128, 64, 128, 4, 2) if width <= 128 else Tile(64, 64, 128, 4, 2)
    elif target == "gfx942":
        tile = Tile(128, 128, 128, 8, 2) if width <= 128 else Tile(64, 64, 128, 4, 1)
    else:
        tile = Tile(128, 128, 128, 8, 3) if width <= 128 else Tile(128, 128, 128, 8, 2)
    return tile._replace(piece=min(tile.piece, width))
