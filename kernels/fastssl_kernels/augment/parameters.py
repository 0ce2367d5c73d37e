"""The parameters of views as rows of numbers: what is uploaded, and what the kernels read."""

from __future__ import annotations

import torch
from torch import Tensor

COLUMNS = (
    "top", "left", "height", "width",  # the crop, in pixels of the image
    "image",  # which image
    "flags",  # FLIP + GRAY + SOLARIZE + INVERT + GRAY_FIRST + TENSORFLOW
    "sigma",  # of the blur, in pixels of the view; 0 for none
    "code",  # the colour operations in their order, two bits each, the first one lowest
    "count",  # how many operations
    "contrast_at",  # how many of them come before contrast; `count` without contrast
    "scale", "shift",  # brightness: v ← scale · v + shift
    "contrast", "saturation",
    "sixths",  # hue shift in sixths of a turn
)  # fmt: skip
"""The columns of a row of parameters, float32; the last word of 64 bytes is unused."""
WORDS = 16
FLIP, GRAY, SOLARIZE, INVERT, GRAY_FIRST, TENSORFLOW = 1, 2, 4, 8, 16, 32
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
# Whole numbers up to here are exact in float32.
MOST_IMAGES = 1 << 24


def column(name: str) -> int:
    return COLUMNS.index(name)


def view_parameters(
    *,
    image: Tensor,
    box: Tensor,
    flip: Tensor,
    order: Tensor,
    factors: Tensor,
    gray: Tensor,
    sigma: Tensor,
    solarize: Tensor,
    invert: Tensor,
    additive_brightness: bool = False,
    tensorflow_color: bool = False,
    grayscale_first: bool = False,
) -> Tensor:
    """Pack the parameters of M views, one a row, for `render_views`. All tensors are on the CPU.

    Args:
        image: whole numbers `[M]`, the image of each view.
        box: `[M, 4]` y0, x0, height, width of the crop in pixels: whole numbers.
        flip: bool `[M]`, mirror left and right.
        order: whole numbers `[M, 4]`, the colour operations one after another: 0 brightness, 1 contrast, 2 saturation,
            3 hue, each at most once; −1 for none.
        factors: `[M, 4]` brightness factor (or offset), contrast factor, saturation factor, hue shift in turns, which
            is at most 0.5 either way.
        gray: bool `[M]`, remove colour.
        sigma: `[M]` σ (or PIL radius) of the blur in pixels of the view, 0 for none.
        solarize, invert: bool `[M]`.
        additive_brightness: brightness factors are offsets.
        tensorflow_color: contrast is around each channel's mean and saturation in HSV, as in `tf.image`; otherwise, as
            in torchvision, around the mean gray level and towards the pixel's gray level.
        grayscale_first: remove colour before the colour operations instead of after them.

    Returns:
        float32 `[M, 16]`.

    Raises:
        ValueError: a tensor of another shape or on a device, numbers that are not finite or out of range, an operation
            that comes twice.
    """
    rows = image.shape[0] if image.ndim == 1 else 0
    one_each = {"image": image, "flip": flip, "gray": gray, "sigma": sigma, "solarize": solarize, "invert": invert}
    four_each = {"box": box, "order": order, "factors": factors}
    for name, tensor in {**one_each, **four_each}.items():
        expected = (rows, 4) if name in four_each else (rows,)
        if tuple(tensor.shape) != expected or tensor.device.type != "cpu":
            raise ValueError(
                f"{name} must be {list(expected)} on the CPU, got {list(tensor.shape)} on {tensor.device.type}"
            )
    _check_values(image, box, order, factors, sigma)
    order = order.long()
    order = order.gather(1, torch.sort((order < 0).long(), dim=1, stable=True).indices)
    active = order >= 0
    count = active.sum(1)
    is_contrast = order == CONTRAST
    packed = torch.zeros(rows, WORDS, dtype=torch.float32)
    packed[:, : column("image")] = box
    factors = factors.float()
    grays = (GRAY_FIRST if grayscale_first else GRAY) * gray.long()
    flags = FLIP * flip.long() + grays + SOLARIZE * solarize.long() + INVERT * invert.long()
    flags += TENSORFLOW * tensorflow_color
    one, zero = torch.ones(rows, dtype=torch.float32), torch.zeros(rows, dtype=torch.float32)
    values = {
        "image": image,
        "flags": flags,
        "sigma": sigma,
        "code": (order.clamp(min=0) * torch.tensor([1, 4, 16, 64])).sum(1),
        "count": count,
        "contrast_at": torch.where(is_contrast.any(1), is_contrast.long().argmax(1), count),
        "scale": one if additive_brightness else factors[:, BRIGHTNESS],
        "shift": factors[:, BRIGHTNESS] if additive_brightness else zero,
        "contrast": factors[:, CONTRAST],
        "saturation": factors[:, SATURATION],
        "sixths": 6 * factors[:, HUE],
    }
    for name, value in values.items():
        packed[:, column(name)] = value
    return packed


def _check_values(image: Tensor, box: Tensor, order: Tensor, factors: Tensor, sigma: Tensor) -> None:
    if ((image < 0) | (image >= MOST_IMAGES)).any():
        raise ValueError(f"image must hold numbers in [0, {MOST_IMAGES}), got {image.min()} to {image.max()}")
    whole = (box == box.round()) & (box >= 0)
    whole[:, 2:] &= box[:, 2:] >= 1
    if not whole.all():
        row = int((~whole.all(1)).nonzero()[0, 0])
        raise ValueError(f"box must hold whole numbers, y0 and x0 >= 0, height and width >= 1, got {box[row].tolist()}")
    if ((order < -1) | (order > HUE)).any():
        raise ValueError(f"order must hold the numbers -1 to 3, got {order.min()} to {order.max()}")
    for operation in range(4):
        if ((order == operation).sum(1) > 1).any():
            raise ValueError(f"order must name operation {operation} at most once a view")
    if not factors.isfinite().all():
        raise ValueError("factors must be finite")
    if (factors[:, HUE].abs() > 0.5).any():
        raise ValueError(f"factors must hold hue shifts in [-0.5, 0.5] turns, got up to {factors[:, HUE].abs().max()}")
    if not (sigma.isfinite() & (sigma >= 0)).all():
        raise ValueError(f"sigma must be finite and >= 0, got {sigma.min()} to {sigma.max()}")
