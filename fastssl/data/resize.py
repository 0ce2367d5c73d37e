"""Crop, antialiased resize and mirror, in plain torch: PIL's and torchvision's resampling.

The filter is as wide as the reduction; bicubic has a = -0.5. Along each axis the operation is a small matrix, so that
a batch of small images of one size is resized by two batched products, mirror included. Large images go one by one
through torch's own resampling, which skips the zeros. Which of the two is decided by the image's size alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .params import ViewParams
from .views import ViewSpec

_DENSE_SIDE = 96
"""Images up to this many pixels a side are resized by batched dense products (measured: faster below, slower above)."""
_CHUNK = 1 << 17
"""Pixels of images and views that are resized together, so that the temporaries stay in a core's cache."""


def _filter(x: Tensor, interpolation: str) -> Tensor:
    """The resampling filter at distances x ≥ 0, in source pixels."""
    if interpolation == "bilinear":
        return (1 - x).clamp_(min=0)
    # Keys' cubic with a = -0.5. Both of its pieces are exactly 0 at their ends, so that clamping selects the piece.
    near, far = x.clamp(max=1), x.clamp(1, 2)
    near = (1.5 * near - 2.5).mul_(near).mul_(near).add_(1)
    far = (2.5 - 0.5 * far).mul_(far).sub_(4).mul_(far).add_(2)
    return near.add_(far)


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
    at = first[:, :, None] + torch.arange(taps, device=device, dtype=torch.float32)
    weight = _filter((at - (center - 0.5)[:, :, None]).div_(wide[:, :, None]).abs_(), interpolation)
    weight.mul_((last[:, :, None] - at).clamp_(0, 1))
    total = weight[:, :, 0].clone()
    for tap in range(1, taps):  # one after another: a reduction's order could depend on the batch
        total.add_(weight[:, :, tap])
    # Taps past the border carry weight 0, wherever they point.
    index = at.add_(start[:, None, None]).clamp_(max=source - 1).to(torch.int64)
    dense = torch.zeros(n, size, source, device=device)
    return dense.scatter_add_(2, index, weight.div_(total[:, :, None]))


def _resize_dense(pixels: Tensor, box: Tensor, flip: Tensor, spec: ViewSpec) -> Tensor:
    """pixels: float32 `[M, H, 3, W]`, rows of planes: no product needs a copy. A view of `[M, 3, S, S]` in [0, 1]."""
    m, height, _, width = pixels.shape
    size, kind = spec.size, spec.interpolation
    down = resize_matrices(box[:, 0], box[:, 2], None, height, size, kind)
    across = resize_matrices(box[:, 1], box[:, 3], flip, width, size, kind)
    rows = torch.bmm(down, pixels.view(m, height, 3 * width))
    views = torch.bmm(rows.view(m, size * 3, width), across.transpose(1, 2)).mul_(1 / 255).clamp_(0, 1)
    return views.view(m, size, 3, size).transpose(1, 2)


def _resize_one(image: Tensor, box: NDArray[np.int64], flip: bool, spec: ViewSpec, out: Tensor) -> None:
    """image: uint8 `[H, W, 3]`; out: `[3, S, S]`."""
    y, x, h, w = box.tolist()
    crop = image[y : y + h, x : x + w].permute(2, 0, 1)[None].to(torch.float32, memory_format=torch.contiguous_format)
    view = F.interpolate(crop, size=(spec.size, spec.size), mode=spec.interpolation, antialias=True)[0]
    view.mul_(1 / 255).clamp_(0, 1)
    out.copy_(view.flip(-1) if flip else view)


def _groups(
    images: Tensor | Sequence[Tensor], shown: NDArray[np.int64]
) -> list[tuple[Tensor, NDArray[np.int64], NDArray[np.int64]]]:
    """Small images of equal shape, uint8 `[n, H, W, 3]`; the positions in `shown` that show them; which they show."""
    if isinstance(images, Tensor):
        return [(images, np.arange(len(shown)), shown)] if max(images.shape[1:3]) <= _DENSE_SIDE else []
    by_shape: dict[torch.Size, list[int]] = {}
    for i in np.unique(shown).tolist():
        if max(images[i].shape[:2]) <= _DENSE_SIDE:
            by_shape.setdefault(images[i].shape, []).append(i)
    groups = []
    for which in by_shape.values():
        at = np.flatnonzero(np.isin(shown, which))
        groups.append((torch.stack([images[i] for i in which]), at, np.searchsorted(which, shown[at])))
    return groups


def resize(
    images: Tensor | Sequence[Tensor], shown: NDArray[np.int64], params: ViewParams, spec: ViewSpec, out: Tensor
) -> None:
    """Crop, resize and mirror: out[j] is parameter row j of image shown[j], in [0, 1]."""
    device = out.device
    alone = np.ones(len(shown), dtype=bool)
    for stack, at, which in _groups(images, shown):
        alone[at] = False
        height, width = stack.shape[1:3]
        step = max(1, _CHUNK // (height * width + spec.size * spec.size))
        for begin in range(0, len(at), step):  # temporaries that stay in the cache, and in the allocator's hands
            some = at[begin : begin + step]
            pick = torch.from_numpy(which[begin : begin + step]).to(device)
            pixels = stack.index_select(0, pick).transpose(2, 3)
            pixels = pixels.to(torch.float32, memory_format=torch.contiguous_format)
            box, flip = (torch.from_numpy(rows[some]).to(device) for rows in (params.box, params.flip))
            views = _resize_dense(pixels, box, flip, spec)
            if len(at) == len(shown):
                out[begin : begin + step] = views
            else:
                out.index_copy_(0, torch.from_numpy(some).to(device), views)
    for j in np.flatnonzero(alone).tolist():
        _resize_one(images[int(shown[j])], params.box[j].astype(np.int64), bool(params.flip[j]), spec, out[j])
