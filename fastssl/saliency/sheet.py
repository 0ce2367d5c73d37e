"""The contact sheet of masks: what to look at before anything is trained with them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.masks import Masks
from ..report.contact_sheet import contact_sheet
from .scale import Maps, resized

BACKGROUND = 0.5
"""Level in place of what the mask leaves out."""


class Example(NamedTuple):
    name: str
    number: int
    """In the source."""
    original: NDArray[np.uint8]
    """`[H, W, 3]`."""
    image: NDArray[np.uint8]
    """`[S, S, 3]`, as cues and network see it; the maps that follow are `[S, S]`."""
    fused: Maps
    pseudo: NDArray[np.bool_]
    said: Maps


def draw_sheet(examples: list[Example], masks: Masks, path: Path) -> Path:
    """Write the PNG `path`: each image with its fused cues, pseudo-mask, prediction, mask and foreground, as squares.

    The masks are read as training reads them.
    """
    rows = []
    for example in examples:
        mask = masks.foreground(example.number, *example.original.shape[:2])
        size = example.image.shape[:2]
        inside = np.ones(size, np.float32) if mask is None else resized(mask[None].astype(np.float32), size)[0]
        seen = BACKGROUND + inside[:, :, None] * (example.image / np.float32(255) - np.float32(BACKGROUND))
        views = [*map(_gray, (example.fused, example.pseudo, example.said, inside)), seen.transpose(2, 0, 1)]
        said = "no mask" if mask is None else f"mask, {mask.mean():.0%}"
        rows.append((example.name, example.original, views, ["cues", "pseudo-mask", "network", said, "foreground"]))
    return contact_sheet(rows, path)


def _gray(level: NDArray) -> NDArray[np.float32]:
    return np.repeat(level.astype(np.float32)[None], 3, axis=0)
