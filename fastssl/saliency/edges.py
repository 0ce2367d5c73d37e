"""Masks that end where their image's colours change: the network's maps are smoother than objects are.

Each image gets two histograms of its colours, of foreground and background, weighted by the map p; a pixel then weighs
what the map says against what its colour says, and the guided filter smooths the result:

    logit q = logit p + w log(h_f(c) / h_b(c))

The two are repeated with q in place of p in the histograms. This stands where DeepUSPS has a fully connected CRF; it is
the colour term of GrabCut (Rother et al., SIGGRAPH 2004) with histograms in place of Gaussian mixtures.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .guided_filter import guided_filter
from .scale import Maps

LEVELS = 10
"""Of each of R, G and B in a histogram."""
WEIGHT = 1.0
"""w: at 1 both count as independent witnesses."""
REPEATS = 2
CERTAIN = 0.02
"""p is kept that far from 0 and 1, so that colours can say otherwise."""
PRIOR = 1.0
"""Pixels that each colour of an image has been seen beforehand, in foreground and background."""


def follow_edges(maps: Maps, images: NDArray[np.uint8]) -> Maps:
    """Maps `[N, H, W]` in 0 … 1 drawn to the edges of their images uint8 `[N, H, W, 3]`; float32, in 0 … 1."""
    refined = np.empty_like(maps)
    for p, image, out in zip(maps, images, refined, strict=True):
        levels = image.astype(np.int64) * LEVELS // 256
        colour = (levels[:, :, 0] * LEVELS + levels[:, :, 1]) * LEVELS + levels[:, :, 2]
        out[:] = _weighed(p.astype(np.float64).ravel(), colour.ravel()).reshape(p.shape)
    return guided_filter(refined, images, radius=max(1, max(maps.shape[1:]) // 48))


def _weighed(p: NDArray[np.float64], colour: NDArray[np.int64]) -> NDArray[np.float64]:
    kept = p.clip(CERTAIN, 1 - CERTAIN)
    prior = np.log(kept / (1 - kept))
    all_of_it = np.bincount(colour)
    once = np.where(all_of_it > 0, PRIOR, 0)
    q = kept
    for _ in range(REPEATS):
        inside = np.bincount(colour, weights=q)
        f, b = inside + once, all_of_it - inside + once
        said = np.log(np.where(once > 0, f / f.sum(), 1)) - np.log(np.where(once > 0, b / b.sum(), 1))
        q = 1 / (1 + np.exp(-(prior + WEIGHT * said[colour])))
    return q
