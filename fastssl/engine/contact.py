"""A contact sheet: what a recipe makes of some images of a source."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import torch

from ..data import Source
from ..data.decode import UnreadableImage, decode_one
from ..data.masks import Masks
from ..data.params import ViewParams, background_removed, sample_params
from ..data.render import render
from ..data.views import Augmentation, ViewSpec
from ..errors import UserError
from ..report.contact_sheet import contact_sheet

TRIES = 64
"""Unreadable images in a row that are passed over."""


def draw_views(
    out: Path,
    source: Source,
    augmentation: Augmentation,
    *,
    seed: int,
    images: int = 6,
    epochs: int = 1,
    masks: Masks | None = None,
) -> Path:
    """Write the PNG `out`: `images` images spread over the source, each beside all its views of `epochs` epochs.

    The views are exactly those that training with this seed shows in its first epochs, before normalisation.
    """
    if images < 1 or epochs < 1:
        raise UserError(f"--images and --repeats must be at least 1, got {images} and {epochs}")
    rows = []
    for sample in np.linspace(0, len(source) - 1, min(images, len(source))).astype(int).tolist():
        sample, image = _readable(source, sample)
        views, captions = [], []
        for epoch in range(epochs):
            number = 0
            for spec in augmentation.views:
                for _ in range(spec.count):
                    params = sample_params(
                        spec,
                        seed=seed,
                        epoch=epoch,
                        samples=[sample],
                        view=number,
                        heights=[image.shape[0]],
                        widths=[image.shape[1]],
                    )
                    seen, said = image, caption(params, spec)
                    removed = background_removed(spec, seed=seed, epoch=epoch, samples=[sample], view=number)
                    if masks is not None and removed[0]:
                        copy = masks.without_background(sample, image, spec.background_fill)
                        seen, said = (image, f"{said} no mask") if copy is None else (copy, f"{said} no background")
                    number += 1
                    views.append(render([seen], params, spec, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))[0])
                    captions.append(said)
        rows.append((Path(source.name(sample)).name, image, views, captions))
    return contact_sheet(rows, out)


def _readable(source: Source, start: int) -> tuple[int, torch.Tensor]:
    """The first image from `start` on (past the end, from the beginning) that decodes, and its id."""
    tried = [(start + offset) % len(source) for offset in range(min(len(source), TRIES))]
    for sample in tried:
        with contextlib.suppress(UnreadableImage, OSError):
            return sample, decode_one(source.read(sample))
    raise UserError(f"none of {len(tried)} images from {source.name(start)} on can be decoded: check the data")


def caption(params: ViewParams, spec: ViewSpec) -> str:
    """What was drawn for one view, in a few words."""
    words = []
    if params.flip[0]:
        words.append("flip")
    if params.jitter[0]:
        brightness, contrast, saturation, hue = params.factors[0]
        sign = "+" if spec.additive_brightness else "×"
        words.append(f"b{sign}{brightness:.1f} c×{contrast:.1f} s×{saturation:.1f} h{round(hue, 2) + 0.0:+.2f}")
    words += [name for name in ("gray", "solarize", "invert") if getattr(params, name)[0]]
    if params.study is not None:
        words += [f"turn {90 * int(params.study.turns[0])}°"] * bool(params.study.turns[0])
        words += [f"noise {params.study.noise[0]:.2f}"] * bool(params.study.noise[0])
        words += ["sobel"] * bool(params.study.sobel[0]) + ["cutout"] * bool(params.study.cutout[0, 2])
    if params.sigma[0] > 0:
        words.append(f"σ {params.sigma[0]:.1f}")
    return " ".join(words).replace("-", "−") or "crop only"
