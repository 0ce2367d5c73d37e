"""Images and parameters of views for the tests of `render_views`."""

from __future__ import annotations

import numpy as np
import torch
from fastssl_kernels.augment import study_parameters, view_parameters

from fastssl.data.params import ViewParams, sample_params
from fastssl.data.views import ViewSpec

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
RAGGED = [(1, 1), (32, 32), (7, 200), (90, 70), (53, 31)]


def pictures(sizes: list[tuple[int, int]], seed: int = 0) -> list[torch.Tensor]:
    """uint8 noise, with blocks of one colour in it: sharp edges, saturated corners, pixels without a hue."""
    rng = np.random.default_rng(seed)
    images = []
    for height, width in sizes:
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image[: height // 3, : width // 2] = rng.integers(0, 2, 3) * 255
        image[height // 2 :, width // 2 :] = 128
        images.append(torch.from_numpy(image))
    return images


def draw(images: list[torch.Tensor], spec: ViewSpec, views: int = 1, seed: int = 1) -> ViewParams:
    sizes = {"heights": [i.shape[0] for i in images], "widths": [i.shape[1] for i in images]}
    samples = np.arange(len(images))
    return ViewParams.concatenate(
        [sample_params(spec, seed=seed, epoch=2, samples=samples, view=view, **sizes) for view in range(views)]
    )


def pack(params: ViewParams, spec: ViewSpec, images: int) -> torch.Tensor:
    """Written out from the definition, operation by operation, not as the engine does it."""
    enabled = [spec.brightness > 0, spec.contrast > 0, spec.saturation > 0, spec.hue > 0]
    order = [
        [int(op) if jitter and enabled[op] else -1 for op in row]
        for jitter, row in zip(params.jitter, params.order, strict=True)
    ]
    return view_parameters(
        image=torch.arange(len(params)) % images,
        order=torch.tensor(order).view(-1, 4),
        additive_brightness=spec.additive_brightness,
        tensorflow_color=spec.color == "tensorflow",
        grayscale_first=spec.grayscale_first,
        **{
            name: torch.from_numpy(getattr(params, name))
            for name in ("box", "flip", "factors", "gray", "sigma", "solarize", "invert")
        },
    )


def pack_study(params: ViewParams, spec: ViewSpec) -> torch.Tensor:
    """Rotation, noise, Sobel and cutout of `params`."""
    study = params.study
    return study_parameters(
        key=torch.from_numpy(study.key.astype(np.int64)),
        fill=spec.cutout_fill,
        **{name: torch.from_numpy(getattr(study, name)) for name in ("turns", "noise", "sobel", "cutout")},
    )


def case(spec: ViewSpec, sizes: list[tuple[int, int]], views: int = 1, seed: int = 1):
    """images, ViewParams, packed parameters."""
    images = pictures(sizes)
    params = draw(images, spec, views, seed)
    return images, params, pack(params, spec, len(images))
