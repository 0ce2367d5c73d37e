"""The launches of BYOL's loss."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .kernel import byol_bwd_kernel, byol_fwd_kernel

# 16 elements a thread of each matrix: 4 to 8 loads of 128 bits in flight.
TILE, WARPS = 2048, 4
WIDEST = 512


def blocks(width: int) -> tuple[int, int]:
    """Rows a program, and columns it takes at a time."""
    block = min(max(triton.next_power_of_2(width), 32), WIDEST)
    return TILE // block if block > 128 else 16, block


def byol_forward(
    prediction: Tensor, target: Tensor, wide: torch.dtype, smallest_square: float
) -> tuple[Tensor, Tensor]:
    """Row losses [B] and statistics [3, B]; see `op.py`."""
    rows, width = prediction.shape
    losses = torch.empty(rows, dtype=wide, device=prediction.device)
    statistics = torch.empty((3, rows), dtype=wide, device=prediction.device)
    per_program, block = blocks(width)
    with torch.cuda.device_of(prediction):
        byol_fwd_kernel[(triton.cdiv(rows, per_program),)](
            prediction.contiguous(),
            target.contiguous(),
            losses,
            statistics,
            rows,
            WIDTH=width,
            WIDE=tl.float64 if wide == torch.float64 else tl.float32,
            SMALLEST_SQUARE=smallest_square,
            ROWS=per_program,
            BLOCK=block,
            num_warps=WARPS,
        )
    return losses, statistics


def byol_backward(grad: Tensor, prediction: Tensor, target: Tensor, statistics: Tensor) -> Tensor:
    """Gradient of the prediction, [B, D] in its dtype."""
    rows, width = prediction.shape
    result = torch.empty(prediction.shape, dtype=prediction.dtype, device=prediction.device)
    per_program, block = blocks(width)
    with torch.cuda.device_of(prediction):
        byol_bwd_kernel[(triton.cdiv(rows, per_program),)](
            grad.contiguous(),
            prediction.contiguous(),
            target.contiguous(),
            statistics,
            result,
            rows,
            WIDTH=width,
            WIDE=tl.float64 if statistics.dtype == torch.float64 else tl.float32,
            ROWS=per_program,
            BLOCK=block,
            num_warps=WARPS,
        )
    return result
