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


def piece_products(tile: Tile, width: int, target: str, products: int = 1, gathered: int = 0) -> float:
    """Tensor instructions of a step in those of one piece of one product, for the ledger; 0 if there is no loop.

    products: of owned and streamed rows, over the whole width. gathered: of weights and one piece of streamed rows.
    """
    if width <= 2 * tile.piece:
        return 0.0  # the compiler unrolls one trip
    share = 1.0
    if target in ("sm_90", "sm_100"):  # an instruction spans all columns of its result: their number goes by the depth
        share = tile.streamed / tile.piece
    elif (
        target == "gfx942" and tile.streamed < 32
    ):  # 16 × 16 results an instruction, which are half the work of 32 × 32
        share = 0.5
    return products * width / tile.piece + gathered * share
