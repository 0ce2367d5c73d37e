"""Foreground masks beside a source's images, for crops whose background is removed (RELICv2, arXiv 2201.05119).

A mask has the name of its image without the suffix, in the same subfolders, in a folder or in tar files of its own:
`masks/cat/0001.png` for `images/cat/0001.jpg`. It is a gray image that covers the pixels as the image's file stores
them: levels above 127 are foreground. One of another size is resized to the nearest pixel. The image's EXIF orientation
turns both; the mask's own is ignored.
"""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path, PurePath

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UserError
from .decode import MAX_PIXELS
from .sources import ArraySource, Source, open_source
from .tar import TarImages
from .views import ViewSpec

THRESHOLD = 127
_ORIENTATION = 0x0112
# What EXIF's orientations 1 … 8 do to stored pixels: transpose first, then reverse rows, then columns.
_TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def check_masks(spec: ViewSpec, name: str, given: bool) -> None:
    """Raise `UserError` for a view whose background is to be removed without masks; `name` says which view it is."""
    if spec.background_removal > 0 and not given:
        raise UserError(
            f"{name}.background-removal {spec.background_removal} needs masks of the images: name them with --masks "
            "(`fastssl saliency` makes some), or set it to 0"
        )


def stem(source: Source, index: int) -> str:
    """The image's path within its source without its suffix; shards of a source count as one folder."""
    name = PurePath(source.name(index))
    if isinstance(source, TarImages) and len(source.paths) > 1:
        name = PurePath(*name.parts[1:])
    return str(name.with_suffix(""))


class Masks:
    """The masks of a source's images.

    Args:
        path: folder or tar, as for a source; of data with `train/`, masks may lie in `train/` too.
        source: the images.

    Raises:
        UserError: nothing readable there, or no mask has the name of an image.
    """

    def __init__(self, path: str | os.PathLike[str], source: Source) -> None:
        root = Path(path).expanduser()
        self._files = open_source(root / "train" if (root / "train").is_dir() else root)
        self._source = source
        self._number = {stem(self._files, i): i for i in range(len(self._files))}
        self._lock = threading.Lock()
        self.missing: dict[str, str] = {}
        """Images that were shown with their background, and why: no mask, or one that cannot be read."""
        if not any(stem(source, i) in self._number for i in range(len(source))):
            raise UserError(
                f"--masks {root} has no mask for any image: it must hold {stem(source, 0)}.png for {source.name(0)}"
            )

    def foreground(self, index: int, height: int, width: int) -> NDArray[np.bool_] | None:
        """bool `[height, width]`, the size of the decoded image; None, and a note in `missing`, without a mask."""
        name = self._source.name(index)
        number = self._number.get(stem(self._source, index))
        try:
            if number is None:
                raise ValueError("no mask of that name")
            mask = _gray(self._files.read(number))
            decoded = isinstance(self._source, ArraySource)
            transpose, up, left = _TURNS[1 if decoded else _orientation(self._source.read(index))]
        except Exception as error:  # PIL's plug-ins raise whatever they meet
            with self._lock:
                self.missing[name] = str(error) or type(error).__name__
            return None
        mask = mask.T if transpose else mask
        mask = mask[:: -1 if up else 1, :: -1 if left else 1]
        rows, columns = (
            (2 * np.arange(shown) + 1) * stored // (2 * shown)
            for shown, stored in zip((height, width), mask.shape, strict=True)
        )
        return mask[rows[:, None], columns] > THRESHOLD

    def without_background(self, index: int, image: Tensor, fill: float) -> Tensor | None:
        """The image `[H, W, 3]` where its mask is foreground and the level round(255 · fill) elsewhere, or None."""
        inside = self.foreground(index, *image.shape[:2])
        if inside is None:
            return None
        kept = torch.from_numpy(inside).to(image.device)[:, :, None]
        return torch.where(kept, image, torch.full_like(image, round(255 * fill)))


def as_stored(mask: NDArray[np.bool_], data: bytes | None) -> NDArray[np.bool_]:
    """A mask `[H, W]` of a decoded image as its file stores the pixels: without the turn that EXIF asks for.

    Args:
        data: the image's file; None for an image that was never encoded.
    """
    transpose, up, left = _TURNS[1 if data is None else _orientation(data)]
    mask = mask[:: -1 if up else 1, :: -1 if left else 1]
    return mask.T if transpose else mask


def _gray(data: bytes) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"mask above the limit of {MAX_PIXELS} pixels")
        return np.asarray(image.convert("L"))


def _orientation(data: bytes) -> int:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        found = image.getexif().get(_ORIENTATION, 1)
    return found if found in _TURNS else 1
