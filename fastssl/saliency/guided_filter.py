"""The guided filter (He, Sun & Tang, "Guided image filtering", ECCV 2010): smooths a map within the image's edges.

In every window the result is a linear function of the guide g, here the gray image: q = a g + b, with

    a = cov(g, p) / (var(g) + ε),      b = mean(p) − a mean(g)                                  (equations 5 and 6)

and a pixel takes the mean a and b of the windows that cover it (equation 8).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from .scale import Maps

EPSILON = 1e-3
"""Variance of the gray level, of 0 … 1, below which a window counts as flat."""
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def guided_filter(maps: Maps, images: NDArray[np.uint8], *, radius: int, epsilon: float = EPSILON) -> Maps:
    """Filter maps along the edges of their images.

    Args:
        maps: float32 `[N, H, W]`.
        images: uint8 `[N, H, W, 3]`.
        radius: windows are 2 · radius + 1 pixels wide, cut at the border.
        epsilon: ε.

    Returns:
        float32 `[N, H, W]`, cut to 0 … 1.
    """
    p = torch.from_numpy(np.ascontiguousarray(maps))[:, None].double()
    g = torch.from_numpy(images.astype(np.float32) @ (_LUMA / 255))[:, None].double()

    def mean(x: torch.Tensor) -> torch.Tensor:
        for window, padding in (((2 * radius + 1, 1), (radius, 0)), ((1, 2 * radius + 1), (0, radius))):
            x = F.avg_pool2d(x, window, stride=1, padding=padding, count_include_pad=False)
        return x

    mean_g, mean_p = mean(g), mean(p)
    a = (mean(g * p) - mean_g * mean_p) / (mean(g * g) - mean_g**2 + epsilon)
    b = mean_p - a * mean_g
    return (mean(a) * g + mean(b)).clamp(0, 1)[:, 0].float().numpy()
