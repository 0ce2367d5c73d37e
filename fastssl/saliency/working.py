"""The source's images in the one size that cues and network work on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.params import center_params
from ..data.reader import Reader, image_sizes
from ..data.views import CenterCrop, ViewSpec

_BATCH = 64


class Part(NamedTuple):
    """Some images of a source; unreadable ones are left out."""

    ids: NDArray[np.int64]
    """int64 `[N]`."""
    originals: list[torch.Tensor]
    """N images uint8 `[H, W, 3]`, as decoded."""
    images: NDArray[np.uint8]
    """`[N, S, S, 3]`: whole images, stretched to squares."""


def working_images(reader: Reader, ids: NDArray[np.int64], size: int) -> Iterator[Part]:
    """The images `ids` in parts of at most 64, in order.

    Raises:
        UserError: too many unreadable images.
    """
    spec = ViewSpec(size=size, interpolation="bilinear")
    for start in range(0, len(ids), _BATCH):
        part = ids[start : start + _BATCH]
        fetched = reader.fetch(part)
        originals = [image for image in fetched if image is not None]
        part = part[[image is not None for image in fetched]]
        if not len(part):
            continue
        heights, widths = image_sizes(originals)
        whole = np.stack((np.zeros_like(heights), np.zeros_like(widths), heights, widths), axis=1)
        params = replace(center_params(CenterCrop(size=size), heights, widths), box=whole.astype(np.float32))
        views = reader.render(originals, params, spec, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        levels = (views.permute(0, 2, 3, 1) * 255).round().clamp(0, 255).to(torch.uint8)
        yield Part(part, originals, np.ascontiguousarray(levels.cpu().numpy()))
