"""The operator body on a GPU: layout, splits and grids around the Triton kernels. Nothing here waits for the device."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ..device import processors, target_of
from ..rows import SMALLEST_NORM
from ..rows_kernel import unit_rows_kernel, unit_rows_per_program
from ..tile import launch_options, padded_rows, padded_width
from .kernel import pick_kernel, scan_kernel
from .tiles import tile_for

# The second pass: a program has a row's candidates, 128 rows of 64 numbers at a time.
PICK_WIDTH, PICK_WARPS, PICK_SLOTS = 64, 4, 256


def nearest_neighbor(z: Tensor, queue: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """-> rows [B, k, D] in the dtype of `z`, index [B, k] int64, similarity [B, k] fp32."""
    z, queue = z.contiguous(), queue.contiguous()
    with torch.cuda.device_of(z):
        unit, factor = _unit_rows(z, queue.dtype)
        keys, streamed = _scan(unit, queue, every=k > 1)
        return _pick(z, factor, queue, keys, streamed, k)


def splits_for(row_tiles: int, tiles: int, wanted: int) -> int:
    """Shares of the queue, so that about `wanted` programs run, each with a few tiles at least."""
    return max(1, min(triton.cdiv(wanted, row_tiles), tiles // 4))


def pick_constants(width: int, k: int, streamed: int) -> dict[str, Any]:
    return {
        "D": width,
        "W": min(PICK_WIDTH, padded_width(width)),
        "BN": streamed,
        "LIST": max(2, triton.next_power_of_2(k)),
        "SLOTS": PICK_SLOTS,
    }


def _unit_rows(z: Tensor, products: torch.dtype) -> tuple[Tensor, Tensor]:
    """Unit rows in padding [rows, P], and 1 / ‖z‖ of each [B]."""
    batch, width = z.shape
    padded, wide = padded_rows(batch), padded_width(width)
    unit = z.new_empty((padded, wide), dtype=products)
    factor = z.new_empty(batch, dtype=torch.float32)
    per_program = unit_rows_per_program(wide)
    unit_rows_kernel[(triton.cdiv(padded, per_program),)](
        z,
        unit,
        factor,
        padded,
        batch,
        padded,
        D=width,
        P=wide,
        NORMALIZE=True,
        SMALLEST=SMALLEST_NORM,
        ROWS=per_program,
        num_warps=4,
    )
    return unit, factor


def _scan(unit: Tensor, queue: Tensor, *, every: bool) -> tuple[Tensor, int]:
    """Keys [splits or tiles, rows], and how many rows of the queue a tile has."""
    target = target_of(unit.device)
    tile = tile_for(unit.shape[1], unit.dtype, target)
    row_tiles, full = len(unit) // tile.owner, len(queue) // tile.streamed
    splits = splits_for(row_tiles, full, 2 * processors(unit.device))
    slots = triton.cdiv(len(queue), tile.streamed) if every else splits
    keys = unit.new_empty((slots, len(unit)), dtype=torch.int64)
    constants, options = launch_options(tile, unit.shape[1], unit.dtype, target)
    scan_kernel[(row_tiles, splits)](
        unit,
        queue,
        keys,
        len(queue),
        triton.cdiv(full, splits),
        EVERY=every,
        D=queue.shape[1],
        BM=tile.owner,
        BN=tile.streamed,
        **constants,
        **options,
    )
    return keys, tile.streamed


def _pick(
    z: Tensor, factor: Tensor, queue: Tensor, keys: Tensor, streamed: int, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch, width = z.shape
    neighbors = z.new_empty((batch, k, width))
    index = z.new_empty((batch, k), dtype=torch.int64)
    similarity = z.new_empty((batch, k), dtype=torch.float32)
    pick_kernel[(batch,)](
        z,
        factor,
        queue,
        keys,
        neighbors,
        index,
        similarity,
        keys.shape[1],
        keys.shape[0],
        len(queue),
        k,
        **pick_constants(width, k, streamed),
        num_warps=PICK_WARPS,
    )
    return neighbors, index, similarity
