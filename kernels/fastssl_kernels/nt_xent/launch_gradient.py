"""Grids and workspaces of the backward pass."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..device import processors
from ..tile import PADDING, padded_rows
from .kernel_gradient import gradient_kernel, through_norm_kernel
from .launch_rows import LOG2E, options_of, rescale_of, splits_of, tile_of, unit_rows
from .logits import Logits


def gradient_of(
    rows: Tensor,
    columns: Tensor,
    weight: Tensor,
    x: Tensor,
    factor: Tensor,
    partner: Tensor | None,
    share: Tensor,
    grad: Tensor,
    logits: Logits,
    segments: int,
    width: int,
    first: int,
    online: bool,
) -> Tensor:
    """Gradient of x: of NT-Xent, or of the keys of InfoNCE if `partner` (their queries) is given."""
    full = len(rows) // PADDING >= processors(rows.device)
    tile = tile_of("gradient" if full else "gradient-few", rows)
    batch = len(x) // segments
    row_tiles, pieces = len(rows) // tile.owner, rows.shape[1] // tile.piece
    # Few rows leave processors idle: then columns are split as well, and the ends meet in a second kernel.
    enough = 2 * row_tiles * pieces > processors(rows.device)
    splits = 1 if enough else splits_of(processors(rows.device), row_tiles * pieces, width // tile.streamed)
    fused = splits == pieces == 1
    partial = rows.new_empty((0,) if fused else (splits, *rows.shape), dtype=torch.float32)
    out = torch.empty_like(x)
    partner_factor = factor
    if partner is None:
        partner = x
    elif logits.normalize:
        partner_factor = unit_rows(partner, logits, 1)[1]
    c = LOG2E / logits.temperature
    scale, rescale = 1.0 / (len(x) * logits.temperature), 2.0 ** -rescale_of(logits)
    flags = {"OWN": partner is x, "ONLINE": online, "NORMALIZE": logits.normalize}
    gradient_kernel[(row_tiles, splits, pieces)](
        rows,
        columns,
        weight,
        weight,
        partial,
        x,
        factor,
        partner,
        partner_factor,
        share,
        grad,
        out,
        c,
        scale,
        rescale,
        first,
        width,
        len(columns) // segments,
        padded_rows(batch),
        batch,
        SEGMENTS=segments,
        D=x.shape[1],
        BM=tile.owner,
        BN=tile.streamed,
        FUSED=fused,
        **flags,
        **options_of(tile, rows),
    )
    if fused:
        return out
    return _launch_through_norm(
        partial,
        x,
        factor,
        partner,
        partner_factor,
        share,
        weight,
        grad,
        out,
        (c, scale, rescale, first, len(columns) // segments, padded_rows(batch), batch),
        segments,
        flags,
    )


def through_norm(
    sums: Tensor, x: Tensor, partner: Tensor, share: Tensor, grad: Tensor, logits: Logits, padded: int
) -> Tensor:
    """Gradient of x [B, D] from the sums [1, B, P] over negatives and its positive, row by row in `partner`."""
    factors = [unit_rows(t, logits, 1)[1] for t in (x, partner)]
    scale = 1.0 / (len(x) * logits.temperature)
    flags = {"OWN": False, "ONLINE": False, "NORMALIZE": logits.normalize}
    numbers = (0.0, scale, 1.0, 0, padded, padded, len(x))
    return _launch_through_norm(
        sums, x, factors[0], partner, factors[1], share, share, grad, torch.empty_like(x), numbers, 1, flags
    )


def _launch_through_norm(
    partial: Tensor,
    x: Tensor,
    factor: Tensor,
    partner: Tensor,
    partner_factor: Tensor,
    share: Tensor,
    weight: Tensor,
    grad: Tensor,
    out: Tensor,
    numbers: tuple[float, ...],
    views: int,
    flags: dict[str, bool],
) -> Tensor:
    per_program = max(1, min(32, 4096 // partial.shape[2]))
    through_norm_kernel[(triton.cdiv(len(x), per_program),)](
        partial,
        x,
        factor,
        partner,
        partner_factor,
        share,
        weight,
        grad,
        out,
        *numbers,
        partial.shape[0],
        len(x),
        partial.shape[1],
        VIEWS=views,
        D=x.shape[1],
        P=partial.shape[2],
        ROWS=per_program,
        num_warps=4,
        **flags,
    )
    return out
