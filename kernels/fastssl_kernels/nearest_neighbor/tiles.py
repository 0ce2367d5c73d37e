"""Tiles of the scan by architecture and width, chosen from the ledger; nothing is tuned at run time."""

from __future__ import annotations

import torch

from ..tile import Tile


def tile_for(width: int, products: torch.dtype, target: str) -> Tile:
    """The tile of `scan_kernel` for rows of padded `width`.

    target: "sm_80", also for every later chip with 99 KB of shared memory a program; "sm_90", "sm_100", "gfx942".
    """
    widths = "narrow" if width <= 128 else "middle" if width <= 256 and products.itemsize == 2 else "wide"
    tile = _TABLE[target, products.itemsize, widths]
    return tile._replace(piece=min(tile.piece, width))


# (target, bytes of an operand, width up to 128 / 256 / any) -> tile. No hot loop spills in any of them.
_TABLE = {
    ("sm_80", 2, "narrow"): Tile(128, 128, 128, 8, 2),
    # 128 rows of 512 bytes are 64 KB: in two pieces they stay within 99 KB.
    ("sm_80", 2, "middle"): Tile(128, 64, 128, 8, 2),
    ("sm_80", 2, "wide"): Tile(64, 64, 128, 4, 2),
    # Three TF32 products make one of fp32; operands split in two fill the registers.
    ("sm_80", 4, "narrow"): Tile(64, 32, 64, 4, 2),
    ("sm_80", 4, "wide"): Tile(64, 64, 32, 4, 2),
    ("sm_90", 2, "narrow"): Tile(128, 128, 128, 8, 3),
    ("sm_90", 2, "middle"): Tile(128, 128, 256, 8, 2),
    ("sm_90", 2, "wide"): Tile(128, 128, 128, 8, 2),
    ("sm_90", 4, "narrow"): Tile(128, 64, 64, 8, 2),
    ("sm_90", 4, "wide"): Tile(128, 64, 32, 8, 3),
    ("sm_100", 2, "narrow"): Tile(128, 128, 128, 8, 3),
    # Tensor memory holds the scores: four warps read them with fewer instructions than eight.
    ("sm_100", 2, "middle"): Tile(128, 128, 256, 4, 2),
    ("sm_100", 2, "wide"): Tile(128, 128, 128, 8, 2),
    ("sm_100", 4, "narrow"): Tile(128, 64, 64, 8, 2),
    ("sm_100", 4, "wide"): Tile(128, 64, 32, 8, 2),
    # 64 KB of local memory; a wave has 64 lanes.
    ("gfx942", 2, "narrow"): Tile(128, 64, 128, 4, 1),
    ("gfx942", 2, "middle"): Tile(128, 64, 128, 4, 1),
    ("gfx942", 2, "wide"): Tile(64, 64, 128, 4, 2),
    ("gfx942", 4, "narrow"): Tile(64, 64, 64, 4, 1),
    ("gfx942", 4, "wide"): Tile(64, 64, 32, 4, 2),
}
