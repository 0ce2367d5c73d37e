"""Views in plain torch, one after another: the definition of correct for any floating dtype.

    crop → antialiased resize → mirror → clip → colour operations in the view's own order, clipping after each
         → grayscale (or before the colour operations) → blur, clip → solarize → invert → (x − mean) / std

Resampling is PIL's and torchvision's (Keys' cubic with a = −0.5, widened by the reduction), colour is torchvision's
(gray weights .2989, .587, .114; contrast around the mean gray level; hue in HSV) or has the contrast and the saturation
of `tf.image` (around each channel's mean; S of HSV). The "gaussian" blur has
2·((S // 10) // 2) + 1 taps with reflected borders (SimCLR, arXiv 2002.05709, app. A: a tenth of the view); "pil" is
PIL's three extended box blurs with repeated borders (Gwosdek et al., 2011).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .parameters import BRIGHTNESS, CONTRAST, FLIP, GRAY, GRAY_FIRST, INVERT, SATURATION, SOLARIZE, TENSORFLOW, column
from .study import add_study, study_column

GRAY_WEIGHTS = (0.2989, 0.587, 0.114)


def resampling_matrix(length: int, size: int, bicubic: bool, dtype: torch.dtype) -> Tensor:
    """`[size, length]`, rows sum to 1: antialiased resampling of `length` pixels to `size`."""
    scale = length / size
    center = (torch.arange(size, dtype=dtype) + 0.5) * scale
    x = (torch.arange(length, dtype=dtype) + 0.5 - center[:, None]).abs() / max(scale, 1.0)
    if bicubic:
        near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
        weight = torch.where(x < 1, near, torch.where(x < 2, far, 0))
    else:
        weight = (1 - x).clamp(min=0)
    return weight / weight.sum(1, keepdim=True)


def gaussian_taps(size: int) -> int:
    """Taps on each side of the middle one: 11 at 224, 0 (no blur) below 20."""
    return size // 10 // 2


def gaussian_matrix(sigma: float, size: int, dtype: torch.dtype) -> Tensor:
    """`[size, size]`: a Gaussian of few taps, borders reflected."""
    half = gaussian_taps(size)
    offset = torch.arange(-half, half + 1)
    tap = torch.exp(-0.5 * (offset.double() / sigma) ** 2)
    source = (torch.arange(size)[:, None] + offset).abs()
    source = torch.where(source < size, source, 2 * (size - 1) - source)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix.scatter_add_(1, source, (tap / tap.sum()).expand(size, -1))
    return matrix.to(dtype)


def box_widths(radius: float) -> tuple[int, float]:
    """Whole pixels on each side and weight of the next one, of a box whose variance is a third of radius²."""
    variance = radius * radius / 3
    whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    edge = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    return whole, edge


def box_matrix(radius: float, size: int, dtype: torch.dtype) -> Tensor:
    """`[size, size]`: three box blurs, border pixels repeated before each."""
    whole, edge = box_widths(radius)
    offset = torch.arange(-whole - 1, whole + 2)
    tap = torch.where(offset.abs() <= whole, 1.0, edge).double()
    source = (torch.arange(size)[:, None] + offset).clamp(0, size - 1)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix.scatter_add_(1, source, (tap / tap.sum()).expand(size, -1))
    return (matrix @ matrix @ matrix).to(dtype)


def gray_level(x: Tensor) -> Tensor:
    """`[S, S]` of `[3, S, S]`."""
    return x[0] * GRAY_WEIGHTS[0] + x[1] * GRAY_WEIGHTS[1] + x[2] * GRAY_WEIGHTS[2]


def turn_hue(x: Tensor, sixths: float) -> Tensor:
    """Turn the HSV wheel by `sixths` of a turn; value and chroma stay."""
    red, green, blue = x
    high, low = x.amax(0), x.amin(0)
    chroma = high - low
    inverse = 1 / chroma.clamp(min=1e-20)
    h = torch.where(high == green, (blue - red) * inverse + 2, (red - green) * inverse + 4)
    h = torch.where(high == red, (green - blue) * inverse, h) + sixths
    h = h - 6 * (h / 6).floor()
    share = [(2 - (h - center).abs()).clamp(0, 1) for center in (3, 2, 4)]
    return torch.stack([high - chroma * share[0], low + chroma * share[1], low + chroma * share[2]])


def scale_saturation(x: Tensor, factor: float) -> Tensor:
    """S of HSV times `factor`, at most 1; hue and value stay."""
    value = x.amax(0)
    chroma = value - x.amin(0)
    scaled = torch.minimum(chroma * factor, value)  # S · value
    return value - (value - x) * (scaled / chroma.clamp(min=1e-20))


def _color(x: Tensor, row: list[float]) -> Tensor:
    tensorflow = int(row[column("flags")]) & TENSORFLOW
    code, count = int(row[column("code")]), int(row[column("count")])
    for slot in range(count):
        which = code >> (2 * slot) & 3
        if which == BRIGHTNESS:
            x = x * row[column("scale")] + row[column("shift")]
        elif which == CONTRAST:
            factor = row[column("contrast")]
            mean = x.mean((1, 2), keepdim=True) if tensorflow else gray_level(x).mean()
            x = x * factor + mean * (1 - factor)
        elif which == SATURATION:
            factor = row[column("saturation")]
            x = scale_saturation(x, factor) if tensorflow else x * factor + gray_level(x) * (1 - factor)
        else:
            x = turn_hue(x, row[column("sixths")])
        x = x.clamp(0, 1)
    return x


def _view(
    image: Tensor, row: list[float], size: int, bicubic: bool, pil: bool, dtype: torch.dtype, turns: int = 0
) -> Tensor:
    """`[3, S, S]` in [0, 1]."""
    top, left, height, width = (int(number) for number in row[:4])
    flags, sigma = int(row[column("flags")]), row[column("sigma")]
    crop = image[top : top + height, left : left + width].permute(2, 0, 1).to(dtype)
    down = resampling_matrix(height, size, bicubic, dtype)
    across = resampling_matrix(width, size, bicubic, dtype)
    if flags & FLIP:
        across = across.flip(0)
    x = (down @ (crop @ across.T) / 255).clamp(0, 1).rot90(turns, (1, 2))
    if flags & GRAY_FIRST:
        x = gray_level(x).expand(3, -1, -1)
    x = _color(x, row)
    if flags & GRAY:
        x = gray_level(x).expand(3, -1, -1)
    if sigma > 0 and (pil or gaussian_taps(size)):
        matrix = (box_matrix if pil else gaussian_matrix)(sigma, size, dtype)
        x = (matrix @ x @ matrix.T).clamp(0, 1)
    if flags & SOLARIZE:
        x = torch.minimum(x, 1 - x)
    return 1 - x if flags & INVERT else x


def render_views_reference(
    images: Tensor | Sequence[Tensor],
    parameters: Tensor,
    size: int,
    *,
    interpolation: str = "bicubic",
    blur: str = "gaussian",
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    dtype: torch.dtype = torch.float64,
    study: Tensor | None = None,
) -> Tensor:
    """`[M, 3, S, S]` of uint8 `[H, W, 3]` images on the CPU; arguments as for `render_views`."""
    out = torch.empty(parameters.shape[0], 3, size, size, dtype=dtype)
    shift, scale = (torch.tensor(numbers, dtype=dtype)[:, None, None] for numbers in (mean, std))
    for view, row in enumerate(parameters.tolist()):
        image = images[int(row[column("image")])]
        turns = 0 if study is None else int(study[view, study_column("turns")])
        x = _view(image, row, size, interpolation == "bicubic", blur == "pil", dtype, turns)
        if study is not None:
            x = add_study(x, study[view], GRAY_WEIGHTS)
        out[view] = (x - shift) / scale
    return out
