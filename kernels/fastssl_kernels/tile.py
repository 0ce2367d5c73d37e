"""The tile of a kernel with products, and the layout of rows that its loads rely on."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

# Segments of rows are padded to this; every tile divides it.
PADDING = 128


class Tile(NamedTuple):
    """Rows of the owner, rows streamed at a time, width of a piece, warps, stages of the software pipeline."""

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


def launch_options(tile: Tile, width: int, products: torch.dtype, target: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Constants and launch options that all kernels with products share."""
    # fp32 products: AMD's matrix cores have them, NVIDIA's make them of three TF32 products.
    precision = "tf32x3" if products == torch.float32 and target != "gfx942" else "ieee"
    constants = {"P": width, "BD": tile.piece, "PRECISION": precision}
    return constants, {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}
