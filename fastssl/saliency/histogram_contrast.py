"""Contrast of colours (Cheng et al., "Global contrast based salient region detection", CVPR 2011; histogram-based
contrast, HC).

A colour is salient by its distance to the colours of all other pixels, with L*a*b* distances D and f the shares of
pixels:

    S(c) = Σ_j f_j D(c, c_j)                                                                         (equation 3)

Pixels are quantised to 12 levels of each of R, G and B, and the rarest colours, which together have at most 5 % of the
pixels, are replaced by the nearest of the others. Then a colour takes a weighted mean over the m = n / 4 colours next
to it, so that quantisation does not tear regions apart (T is the sum of their distances, m at least 2):

    S′(c) = Σ_{i ≤ m} (T − D(c, c_i)) S(c_i) / ((m − 1) T)                                           (equation 4)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .lab import lab
from .scale import Maps, unit_range

LEVELS = 12
COVERED = 0.95


def quantised(image: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The colours that are kept, float64 L*a*b* `[n, 3]`, and the number of each pixel's colour, int64 `[H, W]`.

    Args:
        image: uint8 `[H, W, 3]`.
    """
    levels = image.astype(np.int64) * LEVELS // 256
    keys, number, counts = np.unique(
        levels @ np.array([LEVELS * LEVELS, LEVELS, 1]), return_inverse=True, return_counts=True
    )
    levels = np.stack((keys // LEVELS**2, keys // LEVELS % LEVELS, keys % LEVELS), axis=1)
    colours = lab(np.rint((levels + 0.5) * 256 / LEVELS - 0.5).astype(np.uint8)).astype(np.float64)
    order = np.argsort(-counts, kind="stable")
    kept = order[: int(np.searchsorted(np.cumsum(counts[order]), COVERED * counts.sum())) + 1]
    replaced = np.linalg.norm(colours[:, None] - colours[kept], axis=2).argmin(axis=1)
    return colours[kept], replaced[number].reshape(image.shape[:2])


def colour_contrast(colours: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """S′ of n colours `[n, 3]` with shares of pixels `[n]`; float64 `[n]`."""
    distance = np.linalg.norm(colours[:, None] - colours, axis=2)
    contrast = distance @ shares
    m = max(2, len(colours) // 4)
    if len(colours) <= m:
        return contrast
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :m]
    near = np.take_along_axis(distance, nearest, axis=1)
    total = near.sum(axis=1, keepdims=True)
    return ((total - near) * contrast[nearest]).sum(axis=1) / ((m - 1) * total[:, 0])


def histogram_contrast(images: NDArray[np.uint8]) -> Maps:
    """The cue: uint8 `[N, S, S, 3]` to float32 `[N, S, S]`, in 0 … 1 in each image; 0 in a flat one."""
    maps = np.empty(images.shape[:3], dtype=np.float32)
    for image, out in zip(images, maps, strict=True):
        colours, number = quantised(image)
        shares = np.bincount(number.ravel(), minlength=len(colours)) / number.size
        out[:] = colour_contrast(colours, shares)[number]
    return unit_range(maps)
