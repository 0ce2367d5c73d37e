"""Blur of views: along each axis a matrix of its own for every view, so that a batch is two batched products.

"gaussian": 2·((S // 10) // 2) + 1 taps (23 at 224) with reflected borders, as torchvision's; the TensorFlow code of
SimCLR and BYOL pads with zeros instead, which darkens the border. "pil": PIL's three extended box blurs with repeated
border pixels, without PIL's rounding to 8 bits.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .views import ViewSpec


def blur_taps(size: int) -> int:
    """Taps of the "gaussian" blur of a view of `size` pixels: 23 at 224, 1 (no blur) below 20."""
    return 2 * ((size // 10) // 2) + 1


@lru_cache(maxsize=16)
def _reflections(size: int, taps: int) -> Tensor:
    """float32 `[taps, size · size]`: entry (i, j) of plane t is 1 where tap t of output i reads pixel j."""
    plane = torch.zeros(taps, size, size)
    for t in range(taps):
        for i in range(size):
            j = abs(i + t - taps // 2)
            plane[t, i, min(j, 2 * (size - 1) - j)] = 1
    return plane.view(taps, size * size)


def _gaussian_matrices(sigma: NDArray[np.float32], size: int) -> Tensor:
    taps = blur_taps(size)
    x = np.arange(taps, dtype=np.float64) - taps // 2
    kernel = np.exp(-0.5 * (x / sigma[:, None].astype(np.float64)) ** 2)
    kernel /= kernel.sum(axis=1, keepdims=True)
    weights = torch.from_numpy(kernel.astype(np.float32))
    # A sum of single products, in order, tap by tap: not a matrix product, whose order of summation may vary.
    planes = _reflections(size, taps)
    total = weights[:, :1] * planes[0]
    for t in range(1, taps):
        total.add_(weights[:, t : t + 1] * planes[t])
    return total.view(len(sigma), size, size)


def _box_matrices(radius: NDArray[np.float32], size: int) -> Tensor:
    """PIL's GaussianBlur(radius): three box blurs whose variances add up to radius², border pixels repeated."""
    variance = radius.astype(np.float64) ** 2 / 3
    whole = np.floor((np.sqrt(12 * variance + 1) - 1) / 2)
    edge = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    inner = 1 / (2 * (whole + edge) + 1)
    outer = edge * inner
    matrices = np.zeros((len(radius), size, size))
    rows = np.arange(size)
    reach = int(whole.max(initial=0)) + 1
    for offset in range(-reach, reach + 1):
        weight = np.where(abs(offset) <= whole, inner, np.where(abs(offset) == whole + 1, outer, 0))
        matrices[:, rows, np.clip(rows + offset, 0, size - 1)] += weight[:, None]
    return torch.from_numpy(np.stack([m @ m @ m for m in matrices]).astype(np.float32))


def blur(x: Tensor, sigma: NDArray[np.float32], spec: ViewSpec) -> Tensor:
    """Blur `[n, 3, S, S]`, every row with its own σ > 0, in [0, 1]."""
    n, _, size, _ = x.shape
    matrices = (_gaussian_matrices if spec.blur_kind == "gaussian" else _box_matrices)(sigma, size).to(x.device)
    rows = torch.bmm(x.reshape(n, 3 * size, size), matrices.transpose(1, 2)).view(n, 3, size, size)
    out = torch.empty_like(rows)
    for channel in range(3):
        torch.bmm(matrices, rows[:, channel], out=out[:, channel])
    return out.clamp_(0, 1)
