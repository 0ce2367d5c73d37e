"""Maps of another size, and of another range."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

Maps = NDArray[np.float32]


def resized(maps: Maps, size: tuple[int, ...]) -> Maps:
    """`[N, H, W]` as `[N, *size]`, bilinear with antialiasing."""
    if maps.shape[1:] == tuple(size):
        return maps
    tensor = torch.from_numpy(np.ascontiguousarray(maps))[:, None]
    return F.interpolate(tensor, size=list(size), mode="bilinear", antialias=True, align_corners=False)[:, 0].numpy()


def unit_range(maps: Maps) -> Maps:
    """Each map of `[N, H, W]` stretched to 0 … 1; a constant one becomes 0."""
    low = maps.min(axis=(1, 2), keepdims=True)
    span = maps.max(axis=(1, 2), keepdims=True) - low
    return ((maps - low) / np.where(span > 0, span, 1)).astype(np.float32)
