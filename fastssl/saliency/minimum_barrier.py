"""The background prior as a distance to the image's border (Zhang et al., "Minimum barrier salient object detection at
80 FPS", ICCV 2015).

The barrier of a path is the difference of its greatest and its least level; a pixel's distance is the least barrier of
all paths from the border to it, so that what hangs together with the border at any length is near. The paper's FastMBD
comes close to it by raster scans: each pixel tries the paths of the two neighbours that were visited before it,

    β = max(U(y), I(x)) − min(L(y), I(x)),      and takes the path of y where β < D(x),

with U and L the greatest and least level on the path to y. The map is the mean over L*, a* and b*. To it the paper adds
the contrast of a pixel to the border's colours (section 4, "MB+"): Mahalanobis distances to the four border strips,
each stretched to 0 … 1, added, and the greatest of the four left out, as an object may touch one side.

A pixel of a scan needs only those of the anti-diagonal before it, so that whole anti-diagonals of all images are
computed at once: the numbers are those of the pixel-by-pixel scan.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .lab import lab
from .scale import Maps, unit_range

SCANS = 3
"""Alternately from the upper left and from the lower right; 3 in the paper."""
STRIP = 0.1
"""Width of a border strip, as a share of the side."""


def barrier_distance(levels: NDArray[np.float32], scans: int = SCANS) -> NDArray[np.float32]:
    """FastMBD from the border.

    Args:
        levels: float32 `[H, W, M]`, M images of one channel.
        scans: number of raster scans.

    Returns:
        float32 `[H, W, M]`, 0 on the border.
    """
    height, width, count = levels.shape
    distance = np.full(levels.shape, np.inf, dtype=np.float32)
    distance[[0, -1]] = 0
    distance[:, [0, -1]] = 0
    state = np.stack((distance, levels, levels, levels))  # D, U, L and the image itself
    skewed = np.full((height + width - 1, height, 4, count), np.inf, dtype=np.float32)
    rows, columns = np.indices((height, width))
    for scan in range(scans):
        turned = state if scan % 2 == 0 else state[:, ::-1, ::-1]
        skewed[rows + columns, rows] = turned.transpose(1, 2, 0, 3)
        for diagonal in range(1, height + width - 1):
            first, last = max(0, diagonal - width + 1), min(height, diagonal + 1)
            here, before = skewed[diagonal], skewed[diagonal - 1]
            left_from, left_to = first, min(last, diagonal)  # pixels with a left neighbour: x ≥ 1
            up_from = max(first, 1)
            _try(here[up_from:last], before[up_from - 1 : last - 1])
            _try(here[left_from:left_to], before[left_from:left_to])
        turned[:] = skewed[rows + columns, rows].transpose(2, 0, 1, 3)
    return state[0]


def _try(here: NDArray[np.float32], neighbour: NDArray[np.float32]) -> None:
    """Take the neighbour's path where it has the lower barrier; `[P, 4, M]` each."""
    level = here[:, 3]
    high, low = np.maximum(neighbour[:, 1], level), np.minimum(neighbour[:, 2], level)
    barrier = high - low
    # A neighbour that no path has reached yet says nothing.
    better = (barrier < here[:, 0]) & np.isfinite(neighbour[:, 0])
    for place, value in enumerate((barrier, high, low)):
        np.copyto(here[:, place], value, where=better)


def border_contrast(colours: NDArray[np.float32]) -> NDArray[np.float32]:
    """The term of MB+: float32 `[N, H, W, 3]` to `[N, H, W]`, in 0 … 3 and, stretched, 0 … 1."""
    n, height, width, _ = colours.shape
    deep, wide = max(1, round(STRIP * height)), max(1, round(STRIP * width))
    strips = (colours[:, :deep], colours[:, -deep:], colours[:, :, :wide], colours[:, :, -wide:])
    maps = []
    for strip in strips:
        pixels = strip.reshape(n, -1, 3).astype(np.float64)
        mean = pixels.mean(axis=1)
        centred = pixels - mean[:, None]
        covariance = centred.transpose(0, 2, 1) @ centred / pixels.shape[1]
        inverse = np.linalg.inv(covariance + np.eye(3))  # a level of noise: a strip of one colour has no inverse
        apart = colours - mean[:, None, None]
        squares = np.einsum("nhwi,nij,nhwj->nhw", apart, inverse, apart, optimize=True)
        maps.append(unit_range(np.sqrt(squares.clip(0)).astype(np.float32)))
    stacked = np.stack(maps)
    return unit_range(stacked.sum(axis=0) - stacked.max(axis=0))


def minimum_barrier(images: NDArray[np.uint8]) -> Maps:
    """The cue: uint8 `[N, S, S, 3]` to float32 `[N, S, S]`, in 0 … 1 in each image; 0 in a flat one."""
    colours = lab(images)
    n, height, width, _ = colours.shape
    channels = np.ascontiguousarray(colours.transpose(1, 2, 0, 3)).reshape(height, width, 3 * n)
    barrier = barrier_distance(channels).reshape(height, width, n, 3).mean(axis=3).transpose(2, 0, 1)
    return unit_range(unit_range(barrier) + border_contrast(colours))
