"""Tiles of SwAV's kernels by architecture, chosen from the ledger; nothing is tuned at run time."""

from __future__ import annotations

import torch

from ..tile import Tile

# Rows and columns that a program takes at a time where scores exist.
SCORE_ROWS, SCORE_BLOCK, SCORE_WARPS = 2, 1024, 4


def tile_for(kernel: str, width: int, products: torch.dtype, target: str) -> Tile:
    """The tile of `kernel` for rows of padded `width`: "codes", "predict" or "prototypes"."""
    tile = _TABLE[target, products.itemsize][kernel]
    if width > 128 and products.itemsize == 2:
        # Rows of 512 bytes: two stages of 64 of them fit in shared memory beside the owner's.
        # Each of eight warps would rescale the sums of all 64 rows (37 instructions a score, not 25).
        owner, warps = (64, min(tile.warps, 4)) if target in ("sm_80", "gfx942") else (tile.owner, tile.warps)
        tile = tile._replace(owner=owner, streamed=64, warps=warps, stages=1 if target == "gfx942" else 2)
    return tile._replace(piece=min(tile.piece, width))


# Three TF32 products make one of fp32: operands split in two fill the registers.
_SINGLE = dict.fromkeys(("codes", "predict", "prototypes"), Tile(64, 32, 64, 4, 2))
_TABLE = {
    ("sm_80", 2): {
        "codes": Tile(64, 64, 128, 4, 2),
        "predict": Tile(128, 64, 128, 8, 2),
        "prototypes": Tile(128, 64, 128, 8, 2),
    },
    ("sm_90", 2): {
        "codes": Tile(64, 64, 128, 4, 3),
        "predict": Tile(128, 128, 128, 8, 3),
        "prototypes": Tile(128, 128, 128, 8, 2),
    },
    ("sm_100", 2): {
        "codes": Tile(64, 64, 128, 4, 2),
        "predict": Tile(128, 128, 128, 8, 2),
        "prototypes": Tile(128, 128, 128, 8, 2),
    },
    # A wave takes 32 rows where a second product follows: four would compute every score twice.
    ("gfx942", 2): {
        "codes": Tile(64, 64, 128, 4, 1),
        "predict": Tile(64, 64, 128, 2, 2),
        "prototypes": Tile(64, 64, 128, 2, 1),
    },
    # Pieces of 64 spill where the running sums are held beside the logits.
    **{(target, 4): {**_SINGLE, "predict": Tile(128, 32, 32, 8, 2)} for target in ("sm_80", "sm_90")},
    ("sm_100", 4): _SINGLE,
    ("gfx942", 4): {**_SINGLE, "predict": Tile(64, 32, 64, 2, 2), "prototypes": Tile(64, 32, 64, 2, 2)},
}
