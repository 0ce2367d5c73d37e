"""Grids and workspaces of the forward pass: the sums over all logits, and what becomes of them row by row."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..device import processors
from ..tile import padded_rows
from .kernel import rectangle_kernel, triangle_kernel
from .kernel_finish import finish_kernel
from .launch_rows import LOG2E, options_of, rescale_of, splits_of, tile_of
from .logits import Logits
from .reference import TIE

# Partial sums of the triangle, in rows: at most this many times the fp32 row sums themselves.
SLOTS = 128


def triangle(z: Tensor, logits: Logits, views: int, batch: int) -> Tensor:
    """Partial sums [slots, 1, rows]."""
    tile = tile_of("triangle", z)
    tiles, per_view = len(z) // tile.owner, len(z) // tile.owner // views
    clear, special = (tiles - 1) // 2 - (views - 1) // 2, (views - 1) // 2
    reduced = []
    for begin in range(0, max(clear, 1), SLOTS):
        end = min(begin + SLOTS, clear)
        splits = max(1, min(2 * processors(z.device) // tiles, end - begin))
        slots = end - begin + splits + (special if begin == 0 else 0)
        partial = z.new_empty((slots, 1, len(z)), dtype=torch.float32)
        triangle_kernel[(tiles, splits)](
            z,
            partial,
            LOG2E / logits.temperature,
            batch,
            per_view,
            tiles,
            begin,
            end,
            triton.cdiv(end - begin, splits),
            VIEWS=views,
            BLOCK=tile.owner,
            EVEN=batch % tile.owner == 0 and per_view * tile.owner == batch,
            **options_of(tile, z),
        )
        if clear <= SLOTS:
            return partial
        reduced.append(partial.sum(0))
    return torch.stack(reduced)


def rectangle(
    rows: Tensor,
    columns: Tensor,
    logits: Logits,
    segments: int,
    batch: int,
    width: int,
    first: int,
    online: bool,
    metrics: bool,
    *,
    attract: bool,
    exclude: bool = True,
) -> tuple[Tensor, Tensor]:
    """Partial sums [splits, statistics, rows] and attractions [splits, rows, P] (empty unless asked for)."""
    tile = tile_of("attraction" if attract else "rectangle", rows)
    row_tiles, pieces = len(rows) // tile.owner, rows.shape[1] // tile.piece if attract else 1
    splits = splits_of(2 * processors(rows.device), row_tiles * pieces, width // tile.streamed)
    statistics = 1 + (online or metrics) + metrics
    partial = rows.new_empty((splits, statistics, len(rows)), dtype=torch.float32)
    attracted = rows.new_empty((splits, *rows.shape) if attract else (0,), dtype=torch.float32)
    rectangle_kernel[(row_tiles, splits, pieces)](
        rows,
        columns,
        partial,
        attracted,
        LOG2E / logits.temperature,
        first,
        width,
        len(columns) // segments,
        padded_rows(batch),
        SEGMENTS=segments,
        BM=tile.owner,
        BN=tile.streamed,
        EXCLUDE=exclude,
        ONLINE=online,
        METRICS=metrics,
        ATTRACT=attract,
        **options_of(tile, rows),
    )
    return partial, attracted


def finish(
    partial: Tensor,
    attracted: Tensor | None,
    x: Tensor,
    factor: Tensor,
    z: Tensor,
    partner: tuple[Tensor, Tensor, Tensor] | None,
    logits: Logits,
    views: int,
    online: bool,
    metrics: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> table [rows, 2 or 4], share [rows], weight [padded rows], attraction [rows, D] (empty without `attracted`)."""
    rows, width = x.shape
    attract = attracted is not None and attracted.numel() > 0
    table = x.new_empty((rows, 4 if metrics else 2), dtype=torch.float32)
    share = x.new_empty(rows, dtype=torch.float32)
    weight = x.new_empty(len(z), dtype=torch.float32)
    attraction = x.new_empty((rows, width) if attract else (0,), dtype=torch.float32)
    partner = partner or (x, factor, z)
    per_program = max(1, min(32, 4096 // z.shape[1]))
    c = LOG2E / logits.temperature
    finish_kernel[(triton.cdiv(rows, per_program),)](
        partial,
        attracted if attract else partial,
        x,
        factor,
        z,
        *partner,
        table,
        share,
        weight,
        attraction,
        partial.shape[0],
        len(attracted) if attracted is not None and attract else 0,
        partial.shape[2],
        c,
        TIE * c,
        rescale_of(logits),
        rows,
        rows // views,
        padded_rows(rows // views),
        VIEWS=views,
        D=width,
        P=z.shape[1],
        NORMALIZE=logits.normalize,
        ONLINE=online,
        METRICS=metrics,
        ATTRACT=attract,
        ROWS=per_program,
        num_warps=4,
    )
    return table, share, weight, attraction
