"""What every launch of this folder needs on a GPU: rows in the layout of `kernel`, tiles, shares of the columns."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from ..device import target_of
from ..gather import gather_rows, size_and_rank
from ..rows import SMALLEST_NORM
from ..rows_kernel import unit_rows_kernel, unit_rows_per_program
from ..tile import Tile, launch_options, padded_rows, padded_width
from .logits import Logits
from .tiles import tile_for

LOG2E = math.log2(math.e)
# fp16 weights are computed 2^14 times too large: at most 2^15, and small ones stay normal.
HALF_RESCALE = 14


def unit_rows(x: Tensor, logits: Logits, segments: int) -> tuple[Tensor, Tensor]:
    """Contiguous x [segments·B, D] -> rows for products [segments·padded, P], factors [segments·B] (or none)."""
    rows, width = x.shape
    batch, padded, wide = rows // segments, padded_rows(rows // segments), padded_width(width)
    z = x.new_empty((segments * padded, wide), dtype=logits.products)
    factor = x.new_empty(rows if logits.normalize else 0, dtype=torch.float32)
    per_program = unit_rows_per_program(wide)
    unit_rows_kernel[(triton.cdiv(len(z), per_program),)](
        x,
        z,
        factor,
        len(z),
        batch,
        padded,
        D=width,
        P=wide,
        NORMALIZE=logits.normalize,
        SMALLEST=SMALLEST_NORM,
        ROWS=per_program,
        num_warps=4,
    )
    return z, factor


def gathered_columns(z: Tensor, views: int, batch: int, group: str) -> tuple[Tensor, int, int]:
    """All ranks' rows in padded layout, the length of a segment, and where this rank's rows begin in it."""
    if not group:
        return z, batch, 0
    size, rank = size_and_rank(group)
    own = z.view(views, -1, z.shape[1])[:, :batch].reshape(views * batch, -1)
    everyone = gather_rows(own, views, group).view(views, size * batch, -1)
    pad = padded_rows(size * batch) - size * batch
    return F.pad(everyone, (0, 0, 0, pad)).view(-1, z.shape[1]), size * batch, rank * batch


def queue_columns(queue: Tensor, logits: Logits) -> Tensor:
    pad = padded_width(queue.shape[1]) - queue.shape[1]
    return (F.pad(queue, (0, pad)) if pad else queue).to(logits.products).contiguous()


def as_sums(attraction: Tensor) -> Tensor:
    """[rows, D] -> the [1, rows, P] that `through_norm_kernel` reads."""
    return F.pad(attraction, (0, padded_width(attraction.shape[1]) - attraction.shape[1]))[None]


def column_weight(lse: Tensor, segments: int, logits: Logits, online: bool) -> Tensor:
    """What `finish_kernel` writes as weight, from the natural lse [segments·B] of all ranks."""
    by_segment = lse.view(segments, -1)
    padded = F.pad(by_segment, (0, padded_rows(by_segment.shape[1]) - by_segment.shape[1]))
    base_two = padded.flatten() * LOG2E - rescale_of(logits)
    return base_two if online else torch.exp2(-base_two)


def rescale_of(logits: Logits) -> int:
    return HALF_RESCALE if logits.products == torch.float16 else 0


def tile_of(kernel: str, z: Tensor) -> Tile:
    return tile_for(kernel, z.shape[1], z.dtype, target_of(z.device))


def options_of(tile: Tile, z: Tensor) -> dict[str, Any]:
    constants, options = launch_options(tile, z.shape[1], z.dtype, target_of(z.device))
    return {**constants, **options}


def splits_of(wanted: int, programs: int, tiles: int) -> int:
    """Shares of the columns, so that about `wanted` programs run, each with a few tiles at least."""
    return max(1, min(wanted // programs, tiles // 4))
