"""Small data sets that tests write for themselves."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_images(root: Path, *, classes: int, per_class: int, size: int = 16, seed: int = 0) -> Path:
    """Class folders of small JPEGs: class c has stripes of period 2c + 2, in random colours, with noise."""
    rng = np.random.default_rng(seed)
    for label in range(classes):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for index in range(per_class):
            stripes = (np.arange(size) + rng.integers(8)) // (label + 1) % 2
            pixels = np.where(stripes[:, None, None], rng.integers(0, 255, 3), rng.integers(0, 255, 3))
            pixels = np.broadcast_to(pixels, (size, size, 3)) + rng.normal(0, 16, (size, size, 3))
            pixels = pixels.clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index:03d}.jpg", quality=95)
    return root
