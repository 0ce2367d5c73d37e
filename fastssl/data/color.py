"""The colour operations of a view: gray weights .2989, .587, .114; hue in HSV; clipping after each. Contrast and
saturation as torchvision defines them, around the mean of the gray image and towards the pixel's gray level, or as
TensorFlow does, around each channel's mean and in HSV.

Each works in place on x, float32 `[n, 3, S, S]` in [0, 1]; `amount` is float32 `[n, 1, 1]`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .views import ViewSpec

GRAY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in the gray level (torchvision's; they sum to 0.9999)."""

_HUGE = 1e30
"""Turns any difference of two unequal pixels into a number above 1."""


def gray(x: Tensor) -> Tensor:
    """`[n, S, S]`."""
    return (x[:, 0] * GRAY[0]).add_(x[:, 1] * GRAY[1]).add_(x[:, 2] * GRAY[2])


def _brightness(x: Tensor, amount: Tensor) -> None:
    x.mul_(amount[:, None]).clamp_(0, 1)


def _add_brightness(x: Tensor, amount: Tensor) -> None:
    x.add_(amount[:, None]).clamp_(0, 1)


def _contrast(x: Tensor, amount: Tensor) -> None:
    mean = x.flatten(2).mean(dim=2)
    pivot = (mean[:, 0] * GRAY[0] + mean[:, 1] * GRAY[1] + mean[:, 2] * GRAY[2])[:, None, None]
    x.mul_(amount[:, None]).add_((pivot * (1 - amount))[:, None]).clamp_(0, 1)


def _saturation(x: Tensor, amount: Tensor) -> None:
    level = gray(x).mul_(1 - amount)
    x.mul_(amount[:, None]).add_(level[:, None]).clamp_(0, 1)


def _channel_contrast(x: Tensor, amount: Tensor) -> None:
    mean = x.flatten(2).mean(dim=2)[:, :, None, None]
    x.mul_(amount[:, None]).add_(mean * (1 - amount[:, None])).clamp_(0, 1)


def _extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Greatest and least channel of each pixel, `[n, S, S]`."""
    red, green, blue = x[:, 0], x[:, 1], x[:, 2]
    high, low = torch.maximum(red, green), torch.minimum(red, green)
    return torch.maximum(high, blue, out=high), torch.minimum(low, blue, out=low)


def _hsv_saturation(x: Tensor, amount: Tensor) -> None:
    """With S = chroma / value, all that changes is each channel's distance below the value: by `amount`, or by value /
    chroma where that would make S greater than 1."""
    high, low = _extremes(x)
    factor = torch.minimum(high / (high - low).clamp_(min=1e-20), amount)
    x.mul_(factor[:, None]).add_((high * (1 - factor))[:, None]).clamp_(0, 1)


def _hue(x: Tensor, amount: Tensor) -> None:
    """Turn the HSV wheel by `amount`, keeping value and chroma.

    With h in sixths of a turn, max the value and c the chroma, red is max - c · clip(2 - |h - 3|, 0, 1); green and blue
    are min + c · clip(2 - |h - 2|, 0, 1) and min + c · clip(2 - |h - 4|, 0, 1).
    """
    red, green, blue = x[:, 0], x[:, 1], x[:, 2]
    high, low = _extremes(x)
    chroma = high - low
    scale = chroma.clamp(min=1e-20).reciprocal_()  # where the chroma is 0 so is every numerator
    if_red = (green - blue).mul_(scale)
    if_green = (blue - red).mul_(scale).add_(2)
    sixths = (red - green).mul_(scale).add_(4)  # if blue is the greatest
    # 0 where the channel is the greatest, else 1. Blending by these is ten times as fast as torch.where.
    not_green = (high - green).mul_(_HUGE).clamp_(max=1)
    not_red = (high - red).mul_(_HUGE).clamp_(max=1)
    sixths.sub_(if_green).mul_(not_green).add_(if_green)
    sixths.sub_(if_red).mul_(not_red).add_(if_red)
    sixths.add_(amount * 6)
    sixths.sub_((sixths * (1 / 6)).floor_().mul_(6))
    torch.sub(sixths, 3, out=red)
    torch.sub(sixths, 2, out=green)
    torch.sub(sixths, 4, out=blue)
    x.abs_().neg_().add_(2).clamp_(0, 1).mul_(chroma[:, None])
    torch.sub(high, red, out=red)
    green.add_(low)
    blue.add_(low)


def jitter(x: Tensor, order: NDArray[np.int8], factors: Tensor, spec: ViewSpec) -> None:
    """The four operations in one common order; those of strength 0 change nothing and are left out."""
    tensorflow = spec.color == "tensorflow"
    operations = (
        (_add_brightness if spec.additive_brightness else _brightness, spec.brightness),
        (_channel_contrast if tensorflow else _contrast, spec.contrast),
        (_hsv_saturation if tensorflow else _saturation, spec.saturation),
        (_hue, spec.hue),
    )
    for which in order.tolist():
        apply, strength = operations[which]
        if strength:
            apply(x, factors[:, which, None, None])
