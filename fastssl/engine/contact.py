"""A contact sheet: what a recipe makes of some images of a source."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..data import Source
from ..data.decode import UnreadableImage, decode_one
from ..data.params import ViewParams, sample_params
from ..data.render import render
from ..data.views import Augmentation, ViewSpec
from ..errors import UserError
from ..report.contact_sheet import contact_sheet


def draw_views(
    out: Path, source: Source, augmentation: Augmentation, *, seed: int, images: int = 6, epochs: int = 1
) -> Path:
    """Write the PNG `out`: `images` images spread over the source, each beside all its views of `epochs` epochs.

    The views are exactly those that training with this seed shows in its first epochs, before normalisation.
    """
    if images < 1 or epochs < 1:
        raise UserError(f"--images and --repeats must be at least 1, got {images} and {epochs}")
    rows = []
    for sample in np.linspace(0, len(source) - 1, min(images, len(source))).astype(int).tolist():
        try:
            image = decode_one(source.read(sample))
        except UnreadableImage as error:
            raise UserError(f"{source.name(sample)} cannot be decoded: {error}") from None
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
                    number += 1
                    views.append(render([image], params, spec, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))[0])
                    captions.append(caption(params, spec))
        rows.append((Path(source.name(sample)).name, image, views, captions))
    return contact_sheet(rows, out)


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
    if params.sigma[0] > 0:
        words.append(f"σ {params.sigma[0]:.1f}")
    return " ".join(words).replace("-", "−") or "crop only"
