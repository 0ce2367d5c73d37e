"""The parameters of a view: which box, which colour change, for one view of each of N images.

They are a pure function of (spec, seed, epoch, sample, view, image size). Draws of a (sample, view), see `counter`:

    0 flip          4 contrast      8 blur σ        12 …  box: attempt k owns draws 12 + 4k … 15 + 4k
    1 jitter?       5 saturation    9 blur?               (area or width/height first, as its sampler says)
    2 order         6 hue          10 solarize?     512 …  the further operations of `study`
    3 brightness    7 grayscale?   11 invert?       524    background removed?

Every draw has its fixed place, whether it is used or not: a recipe that changes one probability leaves all other
choices as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import study
from .counter import uniforms
from .study import StudyParams
from .views import CenterCrop, ViewSpec

ORDERS = np.array(list(permutations(range(4))), dtype=np.int8)
"""int8 `[24, 4]`: the orders of the colour operations 0 brightness, 1 contrast, 2 saturation, 3 hue."""

_PHOTOMETRIC = 12
_BACKGROUND = 524


@dataclass(frozen=True)
class ViewParams:
    """One row a view. All arrays share the length N."""

    box: NDArray[np.float32]
    """`[N, 4]` y0, x0, height, width in pixels of the image: whole numbers inside the image, so far."""
    flip: NDArray[np.bool_]
    jitter: NDArray[np.bool_]
    """Whether the four colour operations apply."""
    factors: NDArray[np.float32]
    """`[N, 4]` brightness factor (or offset), contrast factor, saturation factor, hue shift in turns."""
    order: NDArray[np.int8]
    """`[N, 4]` operations in the order of their application: 0 brightness, 1 contrast, 2 saturation, 3 hue."""
    gray: NDArray[np.bool_]
    sigma: NDArray[np.float32]
    """`[N]` σ (or PIL radius) of the blur in pixels of the view, 0 for none."""
    solarize: NDArray[np.bool_]
    invert: NDArray[np.bool_]
    study: StudyParams | None = None
    """Rotation, noise, Sobel and cutout, where the recipe has any of them."""

    def __len__(self) -> int:
        return len(self.flip)

    def select(self, rows: ArrayLike | slice) -> ViewParams:
        """The given rows, in the given order."""
        index = rows if isinstance(rows, slice) else np.asarray(rows)
        some = None if self.study is None else self.study.select(index)
        return ViewParams(**{name: getattr(self, name)[index] for name in _ARRAYS}, study=some)

    @staticmethod
    def concatenate(parts: Sequence[ViewParams]) -> ViewParams:
        """The rows of all parts, one part after another; all have the operations of `study`, or none has."""
        extra = [part.study for part in parts if part.study is not None]
        if extra and len(extra) != len(parts):
            raise ValueError(f"study must be there in all parts or in none, got {len(extra)} of {len(parts)}")
        return ViewParams(
            **{name: np.concatenate([getattr(p, name) for p in parts]) for name in _ARRAYS},
            study=StudyParams.concatenate(extra) if extra else None,
        )


_ARRAYS = tuple(field.name for field in fields(ViewParams) if field.name != "study")


_TOGETHER = 4
"""Attempts whose numbers are drawn at once: a call takes longer than the numbers of a small batch."""


class _Draws:
    """Where the box samplers get their numbers from: attempt k of those rows that all attempts before it had."""

    def __init__(
        self, seed: int, epoch: int, samples: NDArray[np.int64], views: NDArray[np.int64], together: int
    ) -> None:
        self._seed, self._epoch, self._samples, self._views = seed, epoch, samples, views
        self._together = together
        self._rows, self._drawn = np.arange(0), np.empty((0, 0))

    def attempt(self, k: int, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """float64 `[4, len(rows)]`; rows ascend."""
        number = k % self._together
        if number == 0:
            first, count = _PHOTOMETRIC + 4 * k, 4 * self._together
            self._rows = rows
            self._drawn = uniforms(self._seed, self._epoch, self._samples[rows], self._views[rows], count, first=first)
        at = np.searchsorted(self._rows, rows)
        return self._drawn[at, 4 * number : 4 * number + 4].T


def _below(u: NDArray[np.float64], count: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Whole numbers 0 … count - 1 from uniform ones."""
    return np.floor(u * count)


def _area_and_ratio(
    spec: ViewSpec, draws: NDArray[np.float64], h: NDArray[np.float64], w: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Box height and width from a uniform share of the area and a log-uniform width / height."""
    area = h * w * (spec.scale[0] + draws[0] * (spec.scale[1] - spec.scale[0]))
    low, high = np.log(spec.ratio)
    ratio = np.exp(low + draws[1] * (high - low))
    return np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))


def _attempts_boxes(
    spec: ViewSpec, draws: _Draws, h: NDArray[np.float64], w: NDArray[np.float64]
) -> NDArray[np.float64]:
    """torchvision's RandomResizedCrop: ten attempts, then the greatest central box within the ratio bounds."""
    box = np.empty((len(h), 4))
    pending = np.arange(len(h))
    for k in range(10):
        u = draws.attempt(k, pending)
        hp, wp = h[pending], w[pending]
        bh, bw = _area_and_ratio(spec, u, hp, wp)
        fits = (bh > 0) & (bh <= hp) & (bw > 0) & (bw <= wp)
        found = np.stack((_below(u[2], hp - bh + 1), _below(u[3], wp - bw + 1), bh, bw), axis=1)
        box[pending[fits]] = found[fits]
        pending = pending[~fits]
        if not pending.size:
            return box
    hp, wp = h[pending], w[pending]
    bh = np.where(wp / hp < spec.ratio[0], np.maximum(np.rint(wp / spec.ratio[0]), 1), hp)
    bw = np.where(wp / hp > spec.ratio[1], np.maximum(np.rint(hp * spec.ratio[1]), 1), wp)
    box[pending] = np.stack(((hp - bh) // 2, (wp - bw) // 2, bh, bw), axis=1)
    return box


def _tensorflow_boxes(
    spec: ViewSpec, draws: _Draws, h: NDArray[np.float64], w: NDArray[np.float64]
) -> NDArray[np.float64]:
    """TensorFlow's sample_distorted_bounding_box around the whole image: min_object_covered 0.1, 100 attempts.

    Unlike torchvision's, the ratio is uniform (not log-uniform), the *height* is uniform between the heights that give
    the least and the greatest area (so small areas are more frequent), the offset stays one pixel short of the far
    border, and the fallback is the whole image.
    """
    box = np.stack((np.zeros_like(h), np.zeros_like(h), h, w), axis=1)
    pending = np.arange(len(h))
    for k in range(100):
        u = draws.attempt(k, pending)
        hp, wp = h[pending], w[pending]
        ratio = spec.ratio[0] + u[0] * (spec.ratio[1] - spec.ratio[0])
        least, greatest = spec.scale[0] * hp * wp, spec.scale[1] * hp * wp
        low, high = np.rint(np.sqrt(least / ratio)), np.rint(np.sqrt(greatest / ratio))
        too_wide = np.rint(high * ratio) > wp
        high = np.where(too_wide, np.floor((wp + 0.5 - 1e-7) / ratio), high)
        high -= too_wide & (np.rint(high * ratio) > wp)
        high = np.minimum(high, hp)
        low = np.minimum(low, high)
        bh = low + _below(u[1], high - low + 1)
        # Rounding may have left the area just outside its bounds: one pixel of height more, or less, mends that.
        bh += np.rint(bh * ratio) * bh < least
        bh -= np.rint(bh * ratio) * bh > greatest
        bw = np.rint(bh * ratio)
        area = bh * bw
        fits = (area >= least) & (area <= greatest) & (bw > 0) & (bh > 0) & (bw <= wp) & (bh <= hp)
        fits &= area >= 0.1 * hp * wp
        found = np.stack((_below(u[2], np.maximum(hp - bh, 1)), _below(u[3], np.maximum(wp - bw, 1)), bh, bw), axis=1)
        box[pending[fits]] = found[fits]
        pending = pending[~fits]
        if not pending.size:
            break
    return box


def _clip_boxes(spec: ViewSpec, draws: _Draws, h: NDArray[np.float64], w: NDArray[np.float64]) -> NDArray[np.float64]:
    """BYOL's single try (arXiv 2006.07733, official data set code): a side longer than the image is cut to it."""
    u = draws.attempt(0, np.arange(len(h)))
    bh, bw = _area_and_ratio(spec, u, h, w)
    bh, bw = np.clip(bh, 1, h), np.clip(bw, 1, w)
    return np.stack((_below(u[2], h - bh + 1), _below(u[3], w - bw + 1), bh, bw), axis=1)


_BOXES = {"attempts": _attempts_boxes, "tensorflow": _tensorflow_boxes, "clip": _clip_boxes}


def sample_params(
    spec: ViewSpec,
    *,
    seed: int,
    epoch: int,
    samples: ArrayLike,
    view: ArrayLike,
    heights: ArrayLike,
    widths: ArrayLike,
) -> ViewParams:
    """Draw the parameters of N views, one of each sample.

    Args:
        spec: the view's distribution.
        seed, epoch: of the run.
        samples: int64 `[N]` sample ids.
        view: number of the view within the whole recipe, counted through its groups; or int64 `[N]`, one a row.
        heights, widths: `[N]` image sizes in pixels, at least 1.

    Returns:
        N rows; row j depends on sample j, its view and its image size only.
    """
    ids = np.asarray(samples, dtype=np.int64)
    views = np.broadcast_to(np.asarray(view, dtype=np.int64), ids.shape)
    h, w = np.asarray(heights, dtype=np.float64), np.asarray(widths, dtype=np.float64)
    u = uniforms(seed, epoch, ids, views, _PHOTOMETRIC).T
    strength = np.array([spec.brightness, spec.contrast, spec.saturation])[:, None]
    low = np.maximum(1 - strength, 0)
    factors = np.empty((len(ids), 4))
    factors[:, :3] = (low + u[3:6] * (1 + strength - low)).T
    if spec.additive_brightness:
        factors[:, 0] = (2 * u[3] - 1) * spec.brightness
    factors[:, 3] = (2 * u[6] - 1) * spec.hue
    sigma = spec.blur_sigma[0] + u[8] * (spec.blur_sigma[1] - spec.blur_sigma[0])
    together = 1 if spec.sampler == "clip" else _TOGETHER
    box = _BOXES[spec.sampler](spec, _Draws(seed, epoch, ids, views, together), h, w)
    return ViewParams(
        box=box.astype(np.float32),
        flip=u[0] < spec.flip,
        jitter=u[1] < spec.jitter,
        factors=factors.astype(np.float32),
        order=ORDERS[_below(u[2], 24.0).astype(np.intp)],
        gray=u[7] < spec.grayscale,
        sigma=np.where(u[9] < spec.blur, sigma, 0).astype(np.float32),
        solarize=u[10] < spec.solarize,
        invert=u[11] < spec.invert,
        study=study.sample_study(spec, seed=seed, epoch=epoch, samples=ids, view=views) if study.wanted(spec) else None,
    )


def group_params(
    spec: ViewSpec,
    *,
    seed: int,
    epoch: int,
    samples: NDArray[np.int64],
    first: int,
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
) -> ViewParams:
    """Draw the parameters of all `spec.count` views of a group at once; arguments as in `sample_params`.

    Args:
        first: number of the group's first view within the whole recipe.

    Returns:
        `count` · N rows, view-major: row v·N + j is view `first + v` of sample j.
    """
    rows = np.tile(np.arange(len(samples)), spec.count)
    view = first + np.repeat(np.arange(spec.count), len(samples))
    return sample_params(
        spec, seed=seed, epoch=epoch, samples=samples[rows], view=view, heights=heights[rows], widths=widths[rows]
    )


def background_removed(spec: ViewSpec, *, seed: int, epoch: int, samples: ArrayLike, view: int) -> NDArray[np.bool_]:
    """bool `[N]`: whether view number `view` of each sample is cut from the image without its background."""
    ids = np.asarray(samples, dtype=np.int64)
    return uniforms(seed, epoch, ids, view, 1, first=_BACKGROUND)[:, 0] < spec.background_removal


def center_params(crop: CenterCrop, heights: ArrayLike, widths: ArrayLike) -> ViewParams:
    """The evaluation view of N images: the central square of round(crop · short side) pixels, nothing else."""
    h, w = np.asarray(heights, dtype=np.float64), np.asarray(widths, dtype=np.float64)
    short = np.minimum(h, w)
    side = np.clip(np.rint(crop.crop * short), 1, short)
    box = np.stack(((h - side) // 2, (w - side) // 2, side, side), axis=1).astype(np.float32)
    n = len(box)
    no = np.zeros(n, dtype=bool)
    neutral = np.tile(np.array([1, 1, 1, 0], dtype=np.float32), (n, 1))
    order = np.tile(ORDERS[0], (n, 1))
    return ViewParams(box, no, no, neutral, order, no, np.zeros(n, dtype=np.float32), no, no)
