"""CIE L*a*b* (D65) of sRGB pixels: the colours whose differences the cues measure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = _TO_XYZ.sum(axis=1)


def lab(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """L in 0 … 100, a and b in about -110 … 110.

    Args:
        images: uint8 `[..., 3]`, sRGB.

    Returns:
        float32 of the same shape.
    """
    level = np.arange(256) / 255
    linear = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)[images]
    relative = linear @ (_TO_XYZ / _WHITE[:, None]).T
    root = np.where(relative > (6 / 29) ** 3, np.cbrt(relative), relative / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), axis=-1).astype(np.float32)
