"""Tiles by architecture and shape class, chosen from the ledger; nothing is tuned at run time."""

from __future__ import annotations

import torch

from ..tile import Tile


def tile_for(kernel: str, width: int, products: torch.dtype, target: str) -> Tile:
    """The tile of `kernel` for rows of padded `width`.

    kernel: "triangle", "rectangle", "attraction" (a rectangle that also sums columns), "gradient", or "gradient-few"
        where owners of 128 rows would leave processors idle.
    target: "sm_80", also for every later chip with 99 KB of shared memory a program; "sm_90", "sm_100", "gfx942".
    """
    widths = "narrow" if width <= 128 else "middle" if width <= 256 and products.itemsize == 2 else "wide"
    tile = _TABLE[target, products.itemsize, widths][kernel]
    return tile._replace(piece=min(tile.piece, width))


_KERNELS = ("triangle", "rectangle", "attraction", "gradient", "gradient-few")
# (target, bytes of an operand, width up to 128 / 256 / any) -> kernel -> tile. No hot loop spills in any of them.
_TABLE = {
    # 128 × 128 with 4 warps holds 255 registers without spilling; what is streamed twice wants 8.
    ("sm_80", 2, "narrow"): {
        "triangle": Tile(128, 128, 128, 8, 2),
        "rectangle": Tile(128, 128, 128, 4, 2),
        "attraction": Tile(128, 64, 128, 8, 2),
        "gradient": Tile(128, 64, 128, 8, 2),
        "gradient-few": Tile(64, 64, 128, 4, 2),
    },
    # 128 rows of 512 bytes are 64 KB: with two stages only 64 × 64 stays within 99 KB.
    ("sm_80", 2, "middle"): {
        "triangle": Tile(64, 64, 256, 4, 2),
        "rectangle": Tile(64, 64, 256, 4, 2),
        "attraction": Tile(64, 64, 256, 8, 2),
        "gradient": Tile(64, 64, 256, 8, 2),
        "gradient-few": Tile(64, 64, 256, 8, 2),
    },
    ("sm_80", 2, "wide"): dict.fromkeys(_KERNELS, Tile(64, 64, 128, 4, 2)),
    # Three TF32 products make one of fp32; operands split in two fill the registers, so tiles and pieces are small.
    # More than two warps on 32 rows would compute every logit twice.
    ("sm_80", 4, "narrow"): {**dict.fromkeys(_KERNELS, Tile(64, 32, 64, 4, 2)), "triangle": Tile(32, 32, 128, 2, 1)},
    # Three stages hide the loads; registers allow one program a multiprocessor in any case.
    ("sm_90", 2, "narrow"): {
        **dict.fromkeys(_KERNELS, Tile(128, 128, 128, 8, 3)),
        "gradient-few": Tile(64, 128, 128, 4, 2),
    },
    # A warp group takes 64 rows: eight warps on 64 rows would compute every logit twice. The gradients' epilogue spills
    # (a stack of 1.3 KB, once a program), their hot loops do not.
    ("sm_90", 2, "middle"): {
        "triangle": Tile(128, 128, 256, 8, 2),
        "rectangle": Tile(128, 128, 256, 8, 2),
        "attraction": Tile(128, 64, 256, 8, 2),
        "gradient": Tile(128, 64, 256, 8, 2),
        "gradient-few": Tile(64, 64, 256, 4, 2),
    },
    ("sm_90", 2, "wide"): {**dict.fromkeys(_KERNELS, Tile(128, 64, 128, 8, 2)), "triangle": Tile(128, 128, 128, 8, 2)},
    ("sm_90", 4, "narrow"): {
        "triangle": Tile(64, 64, 128, 4, 2),
        "rectangle": Tile(64, 64, 128, 4, 2),
        "attraction": Tile(128, 64, 64, 8, 2),
        "gradient": Tile(128, 64, 64, 8, 2),
        "gradient-few": Tile(64, 64, 64, 4, 2),
    },
    ("sm_100", 2, "narrow"): {
        **dict.fromkeys(_KERNELS, Tile(128, 128, 128, 8, 3)),
        "triangle": Tile(128, 128, 128, 8, 2),
        "gradient-few": Tile(64, 128, 128, 4, 3),
    },
    ("sm_100", 2, "middle"): {
        "triangle": Tile(128, 128, 256, 8, 2),
        "rectangle": Tile(128, 64, 256, 8, 2),
        "attraction": Tile(128, 64, 256, 8, 2),
        "gradient": Tile(64, 128, 256, 8, 2),
        "gradient-few": Tile(64, 128, 256, 8, 2),
    },
    ("sm_100", 2, "wide"): {**dict.fromkeys(_KERNELS, Tile(128, 64, 128, 8, 2)), "triangle": Tile(128, 128, 128, 8, 2)},
    ("sm_100", 4, "narrow"): {
        "triangle": Tile(64, 64, 128, 4, 2),
        "rectangle": Tile(128, 64, 64, 8, 2),
        "attraction": Tile(64, 64, 64, 8, 2),
        "gradient": Tile(64, 64, 64, 8, 2),
        "gradient-few": Tile(64, 64, 64, 8, 2),
    },
    # 64 KB of local memory; a wave has 64 lanes and, where a second product follows, takes 32 rows.
    ("gfx942", 2, "narrow"): {
        "triangle": Tile(64, 64, 128, 4, 2),
        "rectangle": Tile(128, 128, 128, 8, 2),
        "attraction": Tile(128, 64, 128, 4, 1),
        "gradient": Tile(128, 64, 128, 4, 1),
        "gradient-few": Tile(64, 64, 128, 2, 1),
    },
    ("gfx942", 2, "middle"): {
        **dict.fromkeys(_KERNELS, Tile(128, 64, 128, 4, 1)),
        "triangle": Tile(64, 64, 128, 2, 1),
        "gradient-few": Tile(64, 64, 128, 2, 1),
    },
    ("gfx942", 2, "wide"): dict.fromkeys(_KERNELS, Tile(64, 64, 128, 4, 2)),
    ("gfx942", 4, "narrow"): {
        **dict.fromkeys(_KERNELS, Tile(64, 64, 64, 2, 1)),
        "triangle": Tile(64, 64, 64, 4, 1),
        "rectangle": Tile(64, 64, 64, 4, 1),
    },
    **{
        (target, 4, "wide"): dict.fromkeys(_KERNELS, Tile(64, 64, 32, 4, 2))
        for target in ("sm_80", "sm_90", "sm_100", "gfx942")
    },
}
