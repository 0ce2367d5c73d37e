"""From decoded images to views: the reference renderer, in plain torch.

For each view: crop, antialiased resize and mirror (`resize`), rotation (`study`), the four colour operations in the
view's own order and grayscale (`color`), blur (`blur`), solarize, invert, noise, Sobel and cutout (`study`), normalise.
Pixels are float32 in [0, 1] in between, clipped after each operation that can leave it.

Only operations whose rounding does not depend on their place in an array are used (no fused multiply-add, no reduction
split among threads): a view has the same bits whatever its batch and whatever the number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import study
from .blur import blur, blur_taps
from .color import gray, jitter
from .params import ORDERS, ViewParams
from .resize import resize
from .views import ViewSpec

_CHUNK = 1 << 17
"""Floats that the colour operations take at a time, so that they and their temporaries stay in a core's cache."""
_BLOCK = 1 << 21
"""Floats that are sorted by the order of their colour operations and rendered together (8 MiB)."""


def _color_key(params: ViewParams) -> NDArray[np.int64]:
    """Number of the order in `ORDERS` for views with colour jitter, 24 for the others."""
    code = params.order.astype(np.int64) @ np.array([64, 16, 4, 1])
    codes = ORDERS.astype(np.int64) @ np.array([64, 16, 4, 1])
    return np.where(params.jitter, np.searchsorted(codes, code), len(ORDERS))


def _rows(mask: NDArray[np.bool_], device: torch.device) -> Tensor:
    return torch.from_numpy(np.flatnonzero(mask)).to(device)


def _remove_color(x: Tensor, which: NDArray[np.bool_]) -> None:
    if which.any():
        rows = _rows(which, x.device)
        level = gray(x.index_select(0, rows))
        x.index_copy_(0, rows, level[:, None].expand(-1, 3, -1, -1).contiguous())


def _color(x: Tensor, params: ViewParams, key: NDArray[np.int64], spec: ViewSpec) -> None:
    """Jitter and what follows it, in place; rows are sorted by `key`, so that equal orders lie side by side."""
    factors = torch.from_numpy(params.factors).to(x.device)
    chunk = max(1, _CHUNK // (3 * spec.size * spec.size))
    bounds = np.searchsorted(key, np.arange(len(ORDERS) + 1))
    if spec.grayscale_first:
        _remove_color(x, params.gray)
    for number in range(len(ORDERS)):
        begin, end = int(bounds[number]), int(bounds[number + 1])
        for start in range(begin, end, chunk):
            stop = min(start + chunk, end)
            jitter(x[start:stop], ORDERS[number], factors[start:stop], spec)
    if not spec.grayscale_first:
        _remove_color(x, params.gray)
    blurred = params.sigma > 0
    if blurred.any() and (spec.blur_kind == "pil" or blur_taps(spec.size) > 1):
        at = np.flatnonzero(blurred)
        step = max(1, (1 << 22) // (spec.size * spec.size))
        for start in range(0, len(at), step):  # bounds the memory of the matrices
            part = at[start : start + step]
            rows = torch.from_numpy(part).to(x.device)
            x.index_copy_(0, rows, blur(x.index_select(0, rows), params.sigma[part], spec))
    if params.solarize.any():
        rows = _rows(params.solarize, x.device)
        some = x.index_select(0, rows)
        x.index_copy_(0, rows, torch.minimum(some, 1 - some))  # 1 - v where v ≥ 0.5
    if params.invert.any():
        rows = _rows(params.invert, x.device)
        x.index_copy_(0, rows, 1 - x.index_select(0, rows))


_scratch = threading.local()


def _workspace(count: int, size: int, device: torch.device) -> Tensor:
    """float32 `[count, 3, size, size]`; on the CPU one of each thread's own, kept: fresh pages cost more than the work
    on them (measured: 2 µs a page of 4 KiB)."""
    if device.type != "cpu":
        return torch.empty(count, 3, size, size, device=device)
    floats = count * 3 * size * size
    kept: Tensor | None = getattr(_scratch, "kept", None)
    if kept is None or kept.numel() < floats:
        kept = _scratch.kept = torch.empty(max(floats, _BLOCK))
    return kept[:floats].view(count, 3, size, size)


def render(
    images: Tensor | Sequence[Tensor],
    params: ViewParams,
    spec: ViewSpec,
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
    std: tuple[float, float, float] = (1.0, 1.0, 1.0),
    *,
    shown: NDArray[np.int64] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Render views of images, one a row of parameters.

    Args:
        images: uint8 `[N, H, W, 3]`, or N tensors `[H, W, 3]` of any sizes.
        params: M rows.
        spec: size, interpolation, kind of blur and of brightness; strengths of 0 switch an operation off.
        mean, std: subtracted from and divided out of the channels last.
        shown: int64 `[M]`, the image of each row; None for r mod N: V views of each image, view-major.
        out: float32 `[M, 3, S, S]`, contiguous, to write to.

    Returns:
        float32 `[M, 3, S, S]`, on the device of the images.

    Raises:
        ValueError: without `shown`, M is no multiple of N.
    """
    n, count, size = len(images), len(params), spec.size
    if shown is None:
        if n == 0 or count % n:
            raise ValueError(f"params must have a multiple of {n} rows (one a view of each image), got {count}")
        shown = np.arange(count) % n
    device = images[0].device
    if out is None:
        out = torch.empty(count, 3, size, size, device=device)
    block = max(1, _BLOCK // (3 * size * size))
    for begin in range(0, count, block):
        end = min(begin + block, count)
        key = _color_key(params.select(slice(begin, end)))
        order = np.argsort(key, kind="stable")
        rows = params.select(begin + order)
        work = _workspace(end - begin, size, device)
        resize(images, shown[begin + order], rows, spec, work)
        if rows.study is not None:
            study.rotate(work, rows.study)
        _color(work, rows, key[order], spec)
        if rows.study is not None:
            study.finish(work, rows.study, spec)
        if any(mean):
            work.sub_(torch.tensor(mean, device=device)[:, None, None])
        if any(s != 1 for s in std):
            work.div_(torch.tensor(std, device=device)[:, None, None])
        back = torch.from_numpy(np.argsort(order, kind="stable")).to(device)
        torch.index_select(work, 0, back, out=out[begin:end])
    return out
