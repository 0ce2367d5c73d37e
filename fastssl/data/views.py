"""What a view is: the constants from which every random crop and colour change of a recipe is drawn.

A recipe states its views as groups. All views of one group share a size and one distribution; groups of equal size
(BYOL's two asymmetric views, for example) meet again in one tensor when they are rendered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

import torch

from ..errors import UserError


@dataclass(frozen=True)
class ViewSpec:
    """One group of `count` views of `size` × `size` pixels. Defaults: SimCLR on ImageNet (arXiv 2002.05709, app. A)."""

    size: int = 224
    """Side of the view in pixels, at least 8."""
    count: int = 1
    """How many views of this group each image gets."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Least and greatest share of the image's area that a crop covers."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and greatest width / height of a crop."""
    sampler: Literal["attempts", "tensorflow", "clip"] = "attempts"
    """How a box is drawn: torchvision's ten attempts, TensorFlow's distorted bounding box, BYOL's one clipped try."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """Antialiased resampling filter."""
    flip: float = 0.5
    """Probability of a horizontal mirror."""
    jitter: float = 0.8
    """Probability that the four colour operations below are applied, in a random order."""
    brightness: float = 0.8
    """Brightness factor is uniform in [max(0, 1 - x), 1 + x]; with `additive_brightness`, an offset in [-x, x]."""
    contrast: float = 0.8
    """Contrast factor is uniform in [max(0, 1 - x), 1 + x]."""
    saturation: float = 0.8
    """Saturation factor is uniform in [max(0, 1 - x), 1 + x]."""
    hue: float = 0.2
    """Hue shift is uniform in [-x, x] turns of the HSV wheel, at most 0.5."""
    color: Literal["torchvision", "tensorflow"] = "torchvision"
    """What contrast and saturation are. Torchvision's: distance from the view's mean gray level, and from the pixel's
    gray level. TensorFlow's (`tf.image`), which SimCLR and BYOL were trained with: distance from each channel's own
    mean, and S of HSV, at most 1, with hue and value kept."""
    additive_brightness: bool = False
    """Add to the brightness instead of multiplying it."""
    grayscale: float = 0.2
    """Probability of removing colour."""
    grayscale_first: bool = False
    """Remove it before the four colour operations instead of after them (MoCo v1)."""
    blur: float = 0.5
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Least and greatest σ (with `blur_kind="pil"`, radius) of the blur in pixels."""
    blur_kind: Literal["gaussian", "pil"] = "gaussian"
    """A true Gaussian of 2·((size // 10) // 2) + 1 taps, or PIL's three box blurs."""
    solarize: float = 0.0
    """Probability of inverting the pixels at or above 0.5."""
    invert: float = 0.0
    """Probability of replacing every pixel v by 1 - v."""
    background_removal: float = 0.0
    """Probability that the view is cut from the image without its background (RELICv2), which takes masks."""
    background_fill: float = 0.0
    """Level in [0, 1] in place of the background. 0, as if the image were multiplied by its mask."""
    rotation: float = 0.0
    """Probability of a turn by 0, 90, 180 or 270 degrees, each as likely, after the mirror. This and the following are
    further operations of SimCLR's study (arXiv 2002.05709, section 3), which gives no constants for them."""
    noise: float = 0.0
    """Probability of Gaussian noise, added to every pixel and channel after `invert` and clipped to [0, 1]."""
    noise_sigma: tuple[float, float] = (0.0, 0.1)
    """Least and greatest σ of the noise; white is 1."""
    sobel: float = 0.0
    """Probability of showing, after the noise, the length of the gray level's 3 × 3 Sobel gradient in all channels: a
    quarter of it, at most 1; border pixels are repeated."""
    cutout: float = 0.0
    """Probability of filling a square at a uniform place wholly inside the view, last before the normalisation."""
    cutout_side: tuple[float, float] = (0.25, 0.5)
    """Least and greatest side of that square as a share of the view's."""
    cutout_fill: float = 0.5
    """Level of that square before the normalisation, in [0, 1]."""


def option_of(key: str, name: str) -> str:
    """As it is typed, where `name` is an option of the command line."""
    return key.replace("_", "-") if name.startswith("--") else key


def check_words(spec: ViewSpec, name: str) -> None:
    """Raise `UserError` for a word that names none of the kinds of `sampler`, `interpolation`, `color` or `blur_kind`;
    `name` says whose it is. What draws a view would take it for one of them."""
    for key, kind in get_type_hints(ViewSpec).items():
        if get_origin(kind) is Literal and getattr(spec, key) not in get_args(kind):
            words = ", ".join(get_args(kind))
            raise UserError(f"{name}{option_of(key, name)} must be one of {words}, got {getattr(spec, key)!r}")


@dataclass(frozen=True)
class Augmentation:
    """All view groups of a recipe and the normalisation that every view, and every evaluated image, gets last."""

    views: tuple[ViewSpec, ...] = (ViewSpec(count=2),)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def views_per_image(self) -> int:
        return sum(spec.count for spec in self.views)

    @property
    def counts(self) -> tuple[int, ...]:
        """Views of each size, sizes in the order of their first group: the `counts` of its `Views`."""
        by_size: dict[int, int] = {}
        for spec in self.views:
            by_size[spec.size] = by_size.get(spec.size, 0) + spec.count
        return tuple(by_size.values())


@dataclass(frozen=True)
class CenterCrop:
    """The deterministic view of evaluation: the central square of `crop` × the short side, resized to `size`."""

    size: int = 224
    crop: float = 0.875
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"


@dataclass(frozen=True)
class Views:
    """The views of one batch of B images, grouped by resolution, so that a backbone runs once a resolution.

    `groups[g]` is `[counts[g] * B, 3, size_g, size_g]`, view-major: rows v·B … v·B + B - 1 are view v of images
    0 … B - 1. Groups keep the order of the recipe.
    """

    groups: tuple[torch.Tensor, ...]
    counts: tuple[int, ...]
    ids: torch.Tensor | None = None
    """int64 `[B]`, which images they are, for methods with a memory of images."""
    labels: torch.Tensor | None = None
    """int64 `[B]`, for supervised training only."""
    whole: int | None = None
    """Images of the batch that these B are a micro-batch of; None where they are all of it."""

    @property
    def batch_size(self) -> int:
        return self.groups[0].shape[0] // self.counts[0]

    @property
    def whole_batch(self) -> int:
        """Images of the whole batch."""
        return self.batch_size if self.whole is None else self.whole

    @property
    def total(self) -> int:
        """Views an image."""
        return sum(self.counts)

    def each(self) -> list[torch.Tensor]:
        """The views one by one, `[B, 3, S, S]` each, group by group."""
        return [view for group, count in zip(self.groups, self.counts, strict=True) for view in group.chunk(count)]

    def to(self, device: torch.device, *, dtype: torch.dtype | None = None, non_blocking: bool = False) -> Views:
        moved = tuple(g.to(device=device, dtype=dtype, non_blocking=non_blocking) for g in self.groups)
        ids, labels = (None if x is None else x.to(device, non_blocking=non_blocking) for x in (self.ids, self.labels))
        return Views(moved, self.counts, ids, labels, self.whole)

    def micro_batches(self, images: int) -> Iterator[Views]:
        """The batch in parts of so many images, each with all its views; the last part may have fewer."""
        for start in range(0, self.batch_size, images):
            rows = slice(start, start + images)
            groups = (
                torch.cat([view[rows] for view in group.chunk(count)])
                for group, count in zip(self.groups, self.counts, strict=True)
            )
            ids, labels = (None if x is None else x[rows] for x in (self.ids, self.labels))
            yield Views(tuple(groups), self.counts, ids, labels, self.whole_batch)
