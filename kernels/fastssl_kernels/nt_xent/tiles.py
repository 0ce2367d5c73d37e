"""Tiles by architecture and shape class, read from the ledger; nothing is tuned at run time."""

from __future__ import annotations

from typing import NamedTuple

import torch

# Segments of rows are padded to this; every tile divides it.
PADDING = 128


class Tile(NamedTuple):
    """rows of the owner, rows streamed at a time, width of a piece, warps, software-pipelining stages."""

    owner: int
    streamed: int
    piece: int
    warps: int
    stages: int


def padded_rows(rows: int) -> int:
    return (rows + PADDING - 1) // PADDING * PADDING


def padded_width(width: int) -> int:
    """The next power of two, at least what a product needs."""
    return max(16, 1 << (width - 1).bit_length())


def tile_for(kernel: str, width: int, products: torch.dtype, target: str) -> Tile:
    """The tile of `kernel` ("triangle", "rectangle", "attraction", "gradient") for rows of padded `width`."""
    half = products.itemsize == 2
    if not half:
        return Tile(64, 64, min(width, 64), 4, 2)
    if target == "sm_80":
        if width <= 128:
            return {
                "triangle": Tile(128, 128, width, 8, 2),
                "rectangle": Tile(128, 128, width, 8, 2),
                "attraction": Tile(64, 128, width, 4, 2),
                "gradient": Tile(64, 128, width, 4, 2),
            }[kernel]
        return Tile(64, 64, 256, 4, 2)
    if width <= 128:
        return {
            "triangle": Tile(128, 128, width, 8, 3),
            "rectangle": Tile(128, 128, width, 8, 3),
            "attraction": Tile(128, 128, width, 8, 3),
            "gradient": Tile(128, 128, width, 8, 3),
        }[kernel]
    return Tile(128, 64, 256, 8, 2)
