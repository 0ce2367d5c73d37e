"""The other operations of SimCLR's study of augmentations (arXiv 2002.05709, section 3 and figure 4), which no recipe
uses by itself: rotation, Gaussian noise, Sobel filtering and cutout.

The paper names these operations and gives no constants for them, so all constants are options of `ViewSpec`. Here are
their draws and their reference in plain torch; `native/study.h` and `fastssl_kernels.augment` repeat them.

Noise has a random number for every pixel. Its Philox counters are apart from those of all other draws (the highest bit
of c2, see `counter`), one for each pixel p = y · S + x:

    c0 = p        c1 = sample & 0xffffffff        c2 = 1 << 31 | view << 15 | sample >> 32        c3 = epoch

Words (w0, w1) make the normal numbers of red and green, (w2, w3) that of blue, by Box and Muller's formula:
√(-2 ln u) · cos 2πv and √(-2 ln u) · sin 2πv, with u = ((w0 >> 8) + 1) · 2⁻²⁴ in (0, 1] and v = (w1 >> 8) · 2⁻²⁴.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..errors import UserError
from .color import gray
from .counter import philox, uniforms
from .views import ViewSpec, option_of

FIRST_DRAW = 512
"""Draws of a (sample, view) from here on: rotation?, its angle, noise?, σ, Sobel?, cutout?, side, unused, y, x."""
_DRAWS = 10
_NOISE = 1 << 31
_MOST_SAMPLES = 1 << 47


@dataclass(frozen=True)
class StudyParams:
    """One row a view. All arrays share the length N."""

    turns: NDArray[np.int8]
    """`[N]` quarter turns against the clock, 0 to 3."""
    noise: NDArray[np.float32]
    """`[N]` σ of the noise, 0 for none."""
    key: NDArray[np.uint32]
    """`[N, 5]` c1, c2, c3 of the noise's counters and the two words of their key."""
    sobel: NDArray[np.bool_]
    cutout: NDArray[np.int32]
    """`[N, 3]` top, left and side of the square that is filled, in pixels of the view; side 0 for none."""

    def select(self, rows: NDArray | slice) -> StudyParams:
        """The given rows, in the given order."""
        return StudyParams(*(getattr(self, field.name)[rows] for field in fields(self)))

    @staticmethod
    def concatenate(parts: Sequence[StudyParams]) -> StudyParams:
        """The rows of all parts, one part after another."""
        return StudyParams(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(StudyParams)))


def wanted(spec: ViewSpec) -> bool:
    """Whether a view may have any of these operations."""
    return max(spec.rotation, spec.noise, spec.sobel, spec.cutout) > 0


def check(spec: ViewSpec, name: str) -> None:
    """Raise `UserError` for the first of these operations' constants, or of the removal of backgrounds, that cannot be;
    `name` says which view it is."""
    for key in ("background_removal", "rotation", "noise", "sobel", "cutout"):
        if not 0 <= getattr(spec, key) <= 1:
            raise UserError(f"{name}{option_of(key, name)} is a probability between 0 and 1, got {getattr(spec, key)}")
    low, high = spec.noise_sigma
    if not 0 <= low <= high < float("inf"):
        raise UserError(f"{name}{option_of('noise_sigma', name)} must satisfy 0 <= low <= high, got {low} {high}")
    low, high = spec.cutout_side
    if not 0 < low <= high <= 1:
        raise UserError(f"{name}{option_of('cutout_side', name)} must satisfy 0 < low <= high <= 1, got {low} {high}")
    for key in ("cutout_fill", "background_fill"):
        if not 0 <= getattr(spec, key) <= 1:
            raise UserError(f"{name}{option_of(key, name)} must be between 0 and 1, got {getattr(spec, key)}")


def sample_study(spec: ViewSpec, *, seed: int, epoch: int, samples: ArrayLike, view: ArrayLike) -> StudyParams:
    """Draw the parameters of N views, one of each sample; arguments as for `params.sample_params`.

    Raises:
        UserError: noise for a sample id of 2⁴⁷ or more.
    """
    ids = np.asarray(samples, dtype=np.int64)
    if spec.noise > 0 and ids.size and ids.max() >= _MOST_SAMPLES:
        raise UserError(f"view noise needs sample ids below 2^47, got {ids.max()}: set it to 0")
    u = uniforms(seed, epoch, ids, view, _DRAWS, first=FIRST_DRAW).T
    share = spec.cutout_side[0] + u[6] * (spec.cutout_side[1] - spec.cutout_side[0])
    side = np.maximum(np.rint(share * spec.size), 1)
    sigma = spec.noise_sigma[0] + u[3] * (spec.noise_sigma[1] - spec.noise_sigma[0])
    key = np.empty((len(ids), 5), dtype=np.uint32)
    key[:, 0] = ids & 0xFFFFFFFF
    key[:, 1] = _NOISE | np.asarray(view, dtype=np.int64) << 15 | ids >> 32
    key[:, 2:] = epoch, seed & 0xFFFFFFFF, seed >> 32
    cutout = np.stack((np.floor(u[8] * (spec.size - side + 1)), np.floor(u[9] * (spec.size - side + 1)), side), axis=1)
    return StudyParams(
        turns=np.where(u[0] < spec.rotation, np.floor(u[1] * 4), 0).astype(np.int8),
        noise=np.where(u[2] < spec.noise, sigma, 0).astype(np.float32),
        key=key,
        sobel=u[4] < spec.sobel,
        cutout=np.where((u[5] < spec.cutout)[:, None], cutout, 0).astype(np.int32),
    )


def normal_numbers(key: NDArray[np.uint32], size: int) -> NDArray[np.float32]:
    """float32 `[3, size, size]`: standard normal numbers of the view whose row of `StudyParams.key` is given."""
    c1, c2, c3, k0, k1 = (int(word) for word in key)
    drawn = philox((np.arange(size * size, dtype=np.uint64), np.uint64(c1), np.uint64(c2), np.uint64(c3)), (k0, k1))
    bits = (drawn >> np.uint32(8)).astype(np.float64)
    radius = np.sqrt(-2 * np.log((bits[:, 0::2] + 1) * 2.0**-24))
    angle = bits[:, 1::2] * (2 * np.pi * 2.0**-24)
    red, blue = (radius * np.cos(angle)).T
    green = radius[:, 0] * np.sin(angle[:, 0])
    return np.stack((red, green, blue)).astype(np.float32).reshape(3, size, size)


def sobel(x: Tensor) -> Tensor:
    """`[3, S, S]`: a quarter of the length of the gray level's Sobel gradient, at most 1, in every channel.

    Border pixels are repeated. A quarter, so that a straight edge from black to white has the level 1.
    """
    size = x.shape[-1]
    level = gray(x[None])[0]
    before, after = torch.arange(size) - 1, torch.arange(size) + 1
    before[0], after[-1] = 0, size - 1
    before, after = before.to(x.device), after.to(x.device)
    up, down, left, right = level[before], level[after], level[:, before], level[:, after]
    smooth_x = (up + level * 2) + down
    smooth_y = (left + level * 2) + right
    gradient_x = smooth_x[:, after] - smooth_x[:, before]
    gradient_y = smooth_y[after] - smooth_y[before]
    length = (gradient_x * gradient_x + gradient_y * gradient_y).sqrt() * 0.25
    return length.clamp(max=1).expand(3, -1, -1)


def rotate(x: Tensor, study: StudyParams) -> None:
    """Turn the views `[n, 3, S, S]` in place: what follows resize and mirror."""
    for row in np.flatnonzero(study.turns).tolist():
        x[row] = torch.rot90(x[row], int(study.turns[row]), (1, 2)).clone()


def finish(x: Tensor, study: StudyParams, spec: ViewSpec) -> None:
    """Noise, Sobel and cutout in place, on `[n, 3, S, S]`: what precedes the normalisation."""
    for row in range(len(x)):
        view = x[row]
        if study.noise[row] > 0:
            normal = torch.from_numpy(normal_numbers(study.key[row], spec.size)).to(x.device)
            view.add_(normal.mul_(float(study.noise[row]))).clamp_(0, 1)
        if study.sobel[row]:
            view.copy_(sobel(view))
        top, left, side = study.cutout[row].tolist()
        view[:, top : top + side, left : left + side] = spec.cutout_fill
