"""Mask files: their names, their size and their pixels, as `data.masks` reads them."""

from __future__ import annotations

import io
import os
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.masks import as_stored, stem
from ..data.sources import ArraySource, Source
from ..errors import UserError
from .edges import follow_edges
from .scale import Maps, resized

FOLDER = "train"
"""Masks lie there, beside what else the output folder holds: `--masks OUT` looks into it."""


def mask_files(source: Source, out: Path) -> list[Path]:
    """The mask of each image: `out/train/<the image's name without its suffix>.png`.

    Raises:
        UserError: two images would share a mask, or a mask could not be found by its image's name.
    """
    names = [stem(source, i) for i in range(len(source))]
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        parts = PurePath(name).parts
        if not parts or PurePath(name).is_absolute() or any(part.startswith(".") for part in parts):
            raise UserError(
                f"--data has the image {source.name(i)!r}, whose mask would lie outside of the folder or be hidden: "
                "give it a name below the data's folder and without leading dots"
            )
        if first.setdefault(name, i) != i:
            raise UserError(
                f"--data has the images {source.name(first[name])!r} and {source.name(i)!r}, which would share the "
                f"mask {name}.png: rename one"
            )
    if len({len(PurePath(name).parts) > 1 for name in names}) > 1:
        raise UserError(
            f"--data has images both in folders and outside of them, such as {source.name(0)!r}, and a folder of masks "
            "cannot: move all of them into folders"
        )
    return [out / FOLDER / f"{name}.png" for name in names]


def encode_mask(p: Maps, image: NDArray[np.uint8], data: bytes | None, longest: int) -> tuple[bytes, float]:
    """The PNG file of one mask, levels 0 and 255 in the image's proportions, and its share of foreground.

    Args:
        p: `[S, S]`, the network's probabilities for the whole image.
        image: uint8 `[H, W, 3]`, as decoded.
        data: the image's file, whose EXIF orientation the mask is turned back by; None for decoded images.
        longest: the longer side of the mask in pixels, at most; a smaller image's mask has the image's size.
    """
    height, width = image.shape[:2]
    shrink = min(1.0, longest / max(height, width))
    size = max(1, round(height * shrink)), max(1, round(width * shrink))
    small = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BOX))
    mask = follow_edges(resized(p[None], size), small[None])[0] >= 0.5
    buffer = io.BytesIO()
    Image.fromarray(as_stored(mask, data).astype(np.uint8) * 255).save(buffer, format="PNG")
    return buffer.getvalue(), float(mask.mean())


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def stored_bytes(source: Source, index: int) -> bytes | None:
    return None if isinstance(source, ArraySource) else source.read(index)
