"""From decoded images to views: the reference renderer, in plain torch.

For each view: crop and antialiased resize, mirror, the four colour operations in the view's own order, grayscale, blur,
solarize, invert, normalise. Pixels are float32 in [0, 1] in between, clipped after each operation that can leave it.

* **Geometry** is PIL's and torchvision's antialiased resampling of the crop: a filter as wide as the reduction, bicubic
  with a = -0.5. Along each axis it is a small matrix, so that a batch of small images of one size is resized by two
  batched products, mirror included; large images go one by one through torch's own resampling, which skips the zeros.
  Which of the two is decided by the image's size alone.
* **Colour** is torchvision's: gray weights .2989, .587, .114; contrast around the mean of the gray image; hue in HSV.
* **Blur** along an axis is a matrix too. "gaussian": 2·((S // 10) // 2) + 1 taps (23 at 224) with reflected borders, as
  torchvision's; the TensorFlow code of SimCLR and BYOL pads with zeros instead, which darkens the border. "pil": PIL's
  three extended box blurs with repeated border pixels.

Only operations whose rounding does not depend on their place in an array are used (no fused multiply-add, no reduction
split among threads): a view has the same bits whatever its batch and whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .params import ORDERS, ViewParams
from .views import ViewSpec

GRAY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in the gray level (torchvision's; they sum to 0.9999)."""

_DENSE_SIDE = 96
"""Images up to this many pixels a side are resized by batched dense products (measured: faster below, slower above)."""
_CHUNK = 1 << 17
"""Floats of a colour work unit: three planes of it and their temporaries stay in a core's cache."""


# --------------------------------------------------------------------------------------------------------- geometry


def _filter(x: Tensor, interpolation: str) -> Tensor:
    """The resampling filter at distances x ≥ 0, in source pixels."""
    if interpolation == "bilinear":
        return (1 - x).clamp_(min=0)
    near = (1.5 * x - 2.5) * x * x + 1  # Keys' cubic, a = -0.5
    far = ((2.5 - 0.5 * x) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def resize_matrices(
    start: Tensor, length: Tensor, mirrored: Tensor | None, source: int, size: int, interpolation: str
) -> Tensor:
    """Antialiased resampling of `[start, start + length)` to `size` pixels along one axis, as dense matrices.

    Args:
        start, length: float32 `[N]`, whole numbers: the crop of each row.
        mirrored: bool `[N]`, or None for no row.
        source: pixels of the axis.
        size: pixels of the view.
        interpolation: "bilinear" or "bicubic".

    Returns:
        float32 `[N, size, source]`; rows sum to 1.
    """
    n, device = len(start), start.device
    support = 1.0 if interpolation == "bilinear" else 2.0
    scale = (length / size)[:, None]
    wide = scale.clamp(min=1)
    i = torch.arange(size, device=device, dtype=torch.float32)[None, :]
    if mirrored is not None:
        i = torch.where(mirrored[:, None], size - 1 - i, i)
    center = (i + 0.5) * scale
    reach = support * wide
    first = (center - reach + 0.5).floor_().clamp_(min=0)
    last = torch.minimum((center + reach + 0.5).floor_(), length[:, None])
    # Enough taps for the greatest reduction that an image of this size allows, so that no row depends on its batch.
    taps = min(source, int(np.ceil(2 * support * max(source / size, 1.0))) + 1)
    weights = []
    total = torch.zeros_like(center)
    for tap in range(taps):
        at = first + tap
        weight = _filter(((at - center + 0.5) / wide).abs_(), interpolation)
        weight = torch.where(at < last, weight, torch.zeros_like(weight))
        weights.append(weight)
        total = total + weight
    # Taps past the border carry weight 0; they are sent to the first pixel, which adding 0 leaves as it is.
    at = first + start[:, None]
    index = torch.stack([at + tap for tap in range(taps)], dim=2)
    index = torch.where(index < source, index, torch.zeros_like(index)).to(torch.int64)
    dense = torch.zeros(n, size, source, device=device)
    return dense.scatter_add_(2, index, torch.stack([w / total for w in weights], dim=2))


def _resize_dense(pixels: Tensor, box: Tensor, flip: Tensor, spec: ViewSpec) -> Tensor:
    """pixels: float32 `[M, H, 3, W]`, rows of planes, so that no product needs a copy. A view of `[M, 3, S, S]`."""
    m, height, _, width = pixels.shape
    size, kind = spec.size, spec.interpolation
    down = resize_matrices(box[:, 0], box[:, 2], None, height, size, kind)
    across = resize_matrices(box[:, 1], box[:, 3], flip, width, size, kind)
    rows = torch.bmm(down, pixels.view(m, height, 3 * width))
    views = torch.bmm(rows.view(m, size * 3, width), across.transpose(1, 2))
    return views.view(m, size, 3, size).transpose(1, 2)


def _resize_one(image: Tensor, box: NDArray[np.int64], flip: bool, spec: ViewSpec, out: Tensor) -> None:
    """image: uint8 `[H, W, 3]`; out: `[3, S, S]`."""
    y, x, h, w = box.tolist()
    crop = image[y : y + h, x : x + w].permute(2, 0, 1)[None].to(torch.float32, memory_format=torch.contiguous_format)
    view = F.interpolate(crop, size=(spec.size, spec.size), mode=spec.interpolation, antialias=True)[0]
    out.copy_(view.flip(-1) if flip else view)


def _groups(images: Tensor | Sequence[Tensor]) -> list[tuple[Tensor, NDArray[np.int64]]]:
    """Small images of equal shape as uint8 `[n, H, W, 3]`, and which images they are."""
    if isinstance(images, Tensor):
        return [(images, np.arange(len(images)))] if max(images.shape[1:3]) <= _DENSE_SIDE else []
    by_shape: dict[torch.Size, list[int]] = {}
    for i, image in enumerate(images):
        if max(image.shape[:2]) <= _DENSE_SIDE:
            by_shape.setdefault(image.shape, []).append(i)
    return [(torch.stack([images[i] for i in which]), np.array(which)) for which in by_shape.values()]


def _resize(
    images: Tensor | Sequence[Tensor], params: ViewParams, rows: NDArray[np.int64], spec: ViewSpec, out: Tensor
) -> None:
    """Crop, resize and mirror: out[j] is the view of parameter row rows[j], in [0, 1]."""
    n, device = len(images), out.device
    shown = rows % n
    slot = np.full(n, -1)
    for stack, which in _groups(images):
        slot[which] = np.arange(len(which))
        at = np.flatnonzero(np.isin(shown, which))
        pixels = stack.transpose(2, 3).to(torch.float32, memory_format=torch.contiguous_format)
        pixels = pixels.index_select(0, torch.from_numpy(slot[shown[at]]).to(device))
        box = torch.from_numpy(params.box[rows[at]]).to(device)
        flip = torch.from_numpy(params.flip[rows[at]]).to(device)
        views = _resize_dense(pixels, box, flip, spec)
        if len(at) == len(rows):
            out.copy_(views)
        else:
            out.index_copy_(0, torch.from_numpy(at).to(device), views)
    boxes = params.box.astype(np.int64)
    for j in np.flatnonzero(slot[shown] < 0).tolist():
        row = rows[j]
        _resize_one(images[int(shown[j])], boxes[row], bool(params.flip[row]), spec, out[j])
    out.mul_(1 / 255).clamp_(0, 1)


# ----------------------------------------------------------------------------------------------------------- colour
# Each works in place on x, float32 [n, 3, S, S]; `amount` is float32 [n, 1, 1].


def _gray(x: Tensor) -> Tensor:
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
    gray = _gray(x).mul_(1 - amount)
    x.mul_(amount[:, None]).add_(gray[:, None]).clamp_(0, 1)


def _hue(x: Tensor, amount: Tensor) -> None:
    """Turn the HSV wheel by `amount`, keeping value and chroma.

    With h in sixths of a turn, max the value and c the chroma, red is max - c · clip(2 - |h - 3|, 0, 1); green and blue
    are min + c · clip(2 - |h - 2|, 0, 1) and min + c · clip(2 - |h - 4|, 0, 1).
    """
    red, green, blue = x[:, 0], x[:, 1], x[:, 2]
    high = torch.maximum(red, green)
    low = torch.minimum(red, green)
    torch.maximum(high, blue, out=high)
    torch.minimum(low, blue, out=low)
    chroma = high - low
    divisor = chroma.clamp(min=1e-20)  # where the chroma is 0 so is every numerator
    sixths = torch.where(high == green, (blue - red).div_(divisor).add_(2), (red - green).div_(divisor).add_(4))
    sixths = torch.where(high == red, (green - blue).div_(divisor), sixths)
    sixths.add_(amount * 6)
    sixths.sub_((sixths * (1 / 6)).floor_().mul_(6))
    torch.sub(sixths, 3, out=red)
    torch.sub(sixths, 2, out=green)
    torch.sub(sixths, 4, out=blue)
    x.abs_().neg_().add_(2).clamp_(0, 1).mul_(chroma[:, None])
    torch.sub(high, red, out=red)
    green.add_(low)
    blue.add_(low)


def _jitter(x: Tensor, order: NDArray[np.int8], factors: Tensor, spec: ViewSpec) -> None:
    """The four operations in one common order; those of strength 0 change nothing and are left out."""
    operations = (
        (_add_brightness if spec.additive_brightness else _brightness, spec.brightness),
        (_contrast, spec.contrast),
        (_saturation, spec.saturation),
        (_hue, spec.hue),
    )
    for which in order.tolist():
        apply, strength = operations[which]
        if strength:
            apply(x, factors[:, which, None, None])


def _color_key(params: ViewParams) -> NDArray[np.int64]:
    """Number of the order in `ORDERS` for views with colour jitter, 24 for the others."""
    code = params.order.astype(np.int64) @ np.array([64, 16, 4, 1])
    codes = ORDERS.astype(np.int64) @ np.array([64, 16, 4, 1])
    return np.where(params.jitter, np.searchsorted(codes, code), len(ORDERS))


# ------------------------------------------------------------------------------------------------------------- blur


def blur_taps(size: int) -> int:
    """Taps of the "gaussian" blur of a view of `size` pixels: 23 at 224, 1 (no blur) below 20."""
    return 2 * ((size // 10) // 2) + 1


@lru_cache(maxsize=16)
def _reflections(size: int, taps: int) -> Tensor:
    """float32 `[taps, size · size]`: entry (i, j) of plane t is 1 where tap t of output i reads pixel j."""
    plane = torch.zeros(taps, size, size)
    for t in range(taps):
        for i in range(size):
            j = abs(i + t - taps // 2)
            plane[t, i, min(j, 2 * (size - 1) - j)] = 1
    return plane.view(taps, size * size)


def _gaussian_matrices(sigma: NDArray[np.float32], size: int) -> Tensor:
    taps = blur_taps(size)
    x = np.arange(taps, dtype=np.float64) - taps // 2
    kernel = np.exp(-0.5 * (x / sigma[:, None].astype(np.float64)) ** 2)
    kernel /= kernel.sum(axis=1, keepdims=True)
    weights = torch.from_numpy(kernel.astype(np.float32))
    # A sum of single products, in order, tap by tap: not a matrix product, whose order of summation may vary.
    planes = _reflections(size, taps)
    total = weights[:, :1] * planes[0]
    for t in range(1, taps):
        total.add_(weights[:, t : t + 1] * planes[t])
    return total.view(len(sigma), size, size)


def _box_matrices(radius: NDArray[np.float32], size: int) -> Tensor:
    """PIL's GaussianBlur(radius): three box blurs whose variances add up to radius², border pixels repeated."""
    variance = radius.astype(np.float64) ** 2 / 3
    whole = np.floor((np.sqrt(12 * variance + 1) - 1) / 2)
    edge = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    inner = 1 / (2 * (whole + edge) + 1)
    outer = edge * inner
    matrices = np.zeros((len(radius), size, size))
    rows = np.arange(size)
    reach = int(whole.max(initial=0)) + 1
    for offset in range(-reach, reach + 1):
        weight = np.where(abs(offset) <= whole, inner, np.where(abs(offset) == whole + 1, outer, 0))
        matrices[:, rows, np.clip(rows + offset, 0, size - 1)] += weight[:, None]
    return torch.from_numpy(np.stack([m @ m @ m for m in matrices]).astype(np.float32))


def _blur(x: Tensor, sigma: NDArray[np.float32], spec: ViewSpec) -> Tensor:
    """Blur `[n, 3, S, S]`, every row with its own σ > 0, in [0, 1]."""
    n, _, size, _ = x.shape
    matrices = (_gaussian_matrices if spec.blur_kind == "gaussian" else _box_matrices)(sigma, size).to(x.device)
    rows = torch.bmm(x.reshape(n, 3 * size, size), matrices.transpose(1, 2)).view(n, 3, size, size)
    out = torch.empty_like(rows)
    for channel in range(3):
        torch.bmm(matrices, rows[:, channel], out=out[:, channel])
    return out.clamp_(0, 1)


# ------------------------------------------------------------------------------------------------------------ render


def _rows(mask: NDArray[np.bool_], device: torch.device) -> Tensor:
    return torch.from_numpy(np.flatnonzero(mask)).to(device)


def _color(x: Tensor, params: ViewParams, key: NDArray[np.int64], spec: ViewSpec) -> None:
    """Jitter and what follows it, in place; rows are sorted by `key`, so that equal orders lie side by side."""
    factors = torch.from_numpy(params.factors).to(x.device)
    chunk = max(1, _CHUNK // (3 * spec.size * spec.size))
    bounds = np.searchsorted(key, np.arange(len(ORDERS) + 1))
    for number in range(len(ORDERS)):
        begin, end = int(bounds[number]), int(bounds[number + 1])
        for start in range(begin, end, chunk):
            stop = min(start + chunk, end)
            _jitter(x[start:stop], ORDERS[number], factors[start:stop], spec)
    if params.gray.any():
        rows = _rows(params.gray, x.device)
        gray = _gray(x.index_select(0, rows))
        x.index_copy_(0, rows, gray[:, None].expand(-1, 3, -1, -1).contiguous())
    blurred = params.sigma > 0
    if blurred.any() and (spec.blur_kind == "pil" or blur_taps(spec.size) > 1):
        at = np.flatnonzero(blurred)
        step = max(1, (1 << 22) // (spec.size * spec.size))
        for start in range(0, len(at), step):  # bounds the memory of the matrices
            part = at[start : start + step]
            rows = torch.from_numpy(part).to(x.device)
            x.index_copy_(0, rows, _blur(x.index_select(0, rows), params.sigma[part], spec))
    if params.solarize.any():
        rows = _rows(params.solarize, x.device)
        some = x.index_select(0, rows)
        x.index_copy_(0, rows, torch.where(some >= 0.5, 1 - some, some))
    if params.invert.any():
        rows = _rows(params.invert, x.device)
        x.index_copy_(0, rows, 1 - x.index_select(0, rows))


def render(
    images: Tensor | Sequence[Tensor],
    params: ViewParams,
    spec: ViewSpec,
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
    std: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Tensor:
    """Render V views of each of N images.

    Args:
        images: uint8 `[N, H, W, 3]`, or N tensors `[H, W, 3]` of any sizes.
        params: V·N rows, view-major: row r is of image r mod N.
        spec: size, interpolation, kind of blur and of brightness; strengths of 0 switch an operation off.
        mean, std: subtracted from and divided out of the channels last.

    Returns:
        float32 `[V·N, 3, S, S]`, on the device of the images.

    Raises:
        ValueError: the number of rows is no multiple of N.
    """
    n, count, size = len(images), len(params), spec.size
    if n == 0 or count % n:
        raise ValueError(f"params must have a multiple of {n} rows (one a view of each image), got {count}")
    device = images[0].device
    key = _color_key(params)
    rows = np.argsort(key, kind="stable")
    work = torch.empty(count, 3, size, size, device=device)
    _resize(images, params, rows, spec, work)
    _color(work, params.select(rows), key[rows], spec)
    if any(mean):
        work.sub_(torch.tensor(mean, device=device)[:, None, None])
    if any(s != 1 for s in std):
        work.div_(torch.tensor(std, device=device)[:, None, None])
    back = np.empty_like(rows)
    back[rows] = np.arange(count)
    return work.index_select(0, torch.from_numpy(back).to(device))
