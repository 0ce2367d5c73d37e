"""From cues to one pseudo-mask: stretch each, average, weigh the centre, follow the image's edges, cut by Otsu.

fused = mean of the cues · exp(−(x² + y²) / (2 σ²)),      x, y in −1 … 1 from side to side, σ = 0.75
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .guided_filter import guided_filter
from .histogram_contrast import histogram_contrast
from .minimum_barrier import minimum_barrier
from .scale import Maps, unit_range
from .spectral_residual import spectral_residual

CUES: dict[str, Callable[[NDArray[np.uint8]], Maps]] = {
    "spectral residual": spectral_residual,
    "minimum barrier": minimum_barrier,
    "histogram contrast": histogram_contrast,
}
"""Each takes uint8 `[N, S, S, 3]` to float32 `[N, S, S]` in 0 … 1."""
CENTRE = 0.75
_BINS = 256


def fuse(cues: dict[str, Maps], images: NDArray[np.uint8]) -> Maps:
    """One map of the cues' maps: float32 `[N, S, S]` in 0 … 1 in each image; 0 where all cues are."""
    mean = sum(cues.values()) / np.float32(len(cues))
    height, width = images.shape[1:3]
    y, x = (((2 * np.arange(n) + 1) / n - 1) ** 2 / (2 * CENTRE**2) for n in (height, width))
    weighted = (mean * np.exp(-(y[:, None] + x))).astype(np.float32)
    return unit_range(guided_filter(weighted, images, radius=max(1, height // 24)))


def otsu(maps: Maps) -> NDArray[np.float32]:
    """The level of each map that parts its pixels into two classes of the greatest variance between them.

    (Otsu, "A threshold selection method from gray-level histograms", 1979.) `[N]`, of maps in 0 … 1 in 256 bins:
    foreground is what reaches it. A map of one level has none: infinity.
    """
    levels = np.full(len(maps), np.inf, dtype=np.float32)
    for i, values in enumerate(maps):
        counts = np.bincount(np.minimum((values.ravel() * _BINS).astype(np.int64), _BINS - 1), minlength=_BINS)
        below = np.cumsum(counts)[:-1].astype(np.float64)
        above = counts.sum() - below
        moment = np.cumsum(counts * np.arange(_BINS))
        apart = moment[:-1] / np.maximum(below, 1) - (moment[-1] - moment[:-1]) / np.maximum(above, 1)
        between = below * above * apart**2
        if between.max() > 0:
            levels[i] = (between.argmax() + 1) / _BINS
    return levels


def cut(maps: Maps) -> NDArray[np.bool_]:
    """Maps in 0 … 1, `[N, S, S]`, from their own Otsu level on."""
    return maps >= otsu(maps)[:, None, None]


def overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Intersection over union of masks `[N, H, W]`, `[N]`; 1 where both are empty."""
    union = (a | b).sum(axis=(1, 2))
    return np.where(union > 0, (a & b).sum(axis=(1, 2)) / np.maximum(union, 1), 1.0)
