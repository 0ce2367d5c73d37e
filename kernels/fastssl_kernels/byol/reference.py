"""BYOL's regression loss in plain torch: the definition of correct for any dtype.

    loss_i = ‖p̂_i − ẑ_i‖² = 2 − 2·p̂_i·ẑ_i,   x̂ = x / ‖x‖,   z without gradient

Source: BYOL, arXiv 2006.07733, eq. 2. A row of length 0 has x̂ = 0, hence loss 2 and no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor


def byol_reference(prediction: Tensor, target: Tensor) -> Tensor:
    """`[B]` losses of `[B, D]` predictions and targets, in their own dtype."""
    cosine = (_normalised(prediction) * _normalised(target.detach())).sum(-1)
    return 2 - 2 * cosine


def _normalised(rows: Tensor) -> Tensor:
    squares = rows.square().sum(-1, keepdim=True)
    return torch.where(squares > 0, rows * squares.clamp_min(torch.finfo(rows.dtype).tiny).rsqrt(), 0)
