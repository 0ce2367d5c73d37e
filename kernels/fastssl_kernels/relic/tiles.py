"""Tiles by architecture and shape class, chosen from the ledger; nothing is tuned at run time."""

from __future__ import annotations

import torch

from ..tile import Tile


def tile_for(kernel: str, width: int, products: torch.dtype, target: str, columns: int) -> Tile:
    """The tile of `kernel`, "sums" or "gradient", for rows of padded `width` and `columns` padded negatives a view.

    Few negatives, as RELICv2 samples them, take a tile of their number: 16 for 10.
    """
    widths = "narrow" if width <= 128 else "middle" if width <= 256 and products.itemsize == 2 else "wide"
    tile = _TABLE[target, products.itemsize, widths][kernel]
    if target == "sm_80" and columns < tile.streamed:
        tile = tile._replace(warps=2)  # four warps share 16 columns by computing every logit twice
    return tile._replace(piece=min(tile.piece, width), streamed=min(tile.streamed, columns))


# (target, bytes of an operand, width up to 128 / 256 / any) -> kernel -> tile. Two predictions at once mean two tiles
# of rows and of columns in shared memory and two of logits in registers, so that tiles are half those of NT-Xent.
# More warps than a tile has room for would compute logits twice: a group of four takes 64 rows on sm_90 and sm_100, a
# warp takes 32 rows on gfx942.
_TABLE = {
    ("sm_80", 2, "narrow"): {"sums": Tile(64, 64, 128, 4, 2), "gradient": Tile(64, 64, 128, 4, 2)},
    ("sm_80", 2, "middle"): {"sums": Tile(64, 32, 128, 4, 2), "gradient": Tile(64, 32, 128, 4, 1)},
    ("sm_80", 2, "wide"): dict.fromkeys(("sums", "gradient"), Tile(64, 32, 128, 4, 2)),
    # Pieces of 64 spill forward; with two stages they need 104 KB.
    ("sm_80", 4, "narrow"): {"sums": Tile(32, 32, 32, 2, 2), "gradient": Tile(32, 32, 64, 4, 1)},
    ("sm_90", 2, "narrow"): {"sums": Tile(128, 64, 128, 8, 3), "gradient": Tile(128, 64, 128, 8, 3)},
    ("sm_90", 2, "middle"): {"sums": Tile(64, 64, 256, 4, 2), "gradient": Tile(64, 64, 256, 4, 2)},
    ("sm_90", 2, "wide"): dict.fromkeys(("sums", "gradient"), Tile(64, 64, 128, 4, 2)),
    ("sm_90", 4, "narrow"): dict.fromkeys(("sums", "gradient"), Tile(64, 32, 64, 4, 2)),
    ("sm_100", 2, "narrow"): {"sums": Tile(128, 64, 128, 8, 3), "gradient": Tile(128, 64, 128, 8, 3)},
    ("sm_100", 2, "middle"): {"sums": Tile(64, 64, 256, 4, 2), "gradient": Tile(64, 64, 256, 8, 2)},
    ("sm_100", 2, "wide"): {"sums": Tile(64, 64, 128, 4, 2), "gradient": Tile(64, 64, 128, 8, 2)},
    ("sm_100", 4, "narrow"): dict.fromkeys(("sums", "gradient"), Tile(64, 32, 32, 4, 2)),
    ("gfx942", 2, "narrow"): dict.fromkeys(("sums", "gradient"), Tile(64, 32, 128, 2, 1)),
    ("gfx942", 2, "middle"): dict.fromkeys(("sums", "gradient"), Tile(64, 32, 128, 2, 1)),
    ("gfx942", 2, "wide"): dict.fromkeys(("sums", "gradient"), Tile(64, 32, 128, 2, 1)),
    ("gfx942", 4, "narrow"): dict.fromkeys(("sums", "gradient"), Tile(64, 32, 64, 2, 1)),
    # Tensor cores of sm_90 and later take 64 rows; pieces of 64 spill backward.
    ("sm_90", 4, "wide"): dict.fromkeys(("sums", "gradient"), Tile(64, 32, 32, 4, 2)),
    ("sm_100", 4, "wide"): dict.fromkeys(("sums", "gradient"), Tile(64, 32, 32, 4, 2)),
    ("sm_80", 4, "wide"): {"sums": Tile(32, 32, 64, 2, 1), "gradient": Tile(64, 32, 32, 4, 1)},
    ("gfx942", 4, "wide"): dict.fromkeys(("sums", "gradient"), Tile(32, 32, 64, 1, 1)),
}
