"""Rows of length one, in torch."""

from __future__ import annotations

import torch
from torch import Tensor

# A row shorter than this has no direction: it counts as the zero vector and gets no gradient.
SMALLEST_NORM = 1e-12


def unit_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of `x` [N, D] divided by their length, and the factors [N]: 1 / ‖x_i‖, or 0 for a negligible length."""
    square = x.square().sum(1)
    usable = square > SMALLEST_NORM**2
    factor = torch.where(usable, square.where(usable, 1.0).rsqrt(), 0.0)
    return x * factor[:, None], factor
