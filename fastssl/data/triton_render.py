"""The renderer on the GPU: views of decoded images by `fastssl_kernels.render_views`, a few launches a group."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import numpy as np
import torch
from fastssl_kernels import render_views, study_parameters, view_parameters
from numpy.typing import NDArray
from torch import Tensor

from .params import ViewParams
from .views import ViewSpec


def available() -> bool:
    """Whether Triton is installed; whether there is a GPU is another question."""
    return importlib.util.find_spec("triton") is not None


def packed(params: ViewParams, spec: ViewSpec, shown: NDArray[np.int64]) -> Tensor:
    """float32 `[M, 16]`: the rows of parameters that the kernels read."""
    enabled = np.array([spec.brightness, spec.contrast, spec.saturation, spec.hue]) > 0
    order = np.where(params.jitter[:, None] & enabled[params.order], params.order, -1)
    names = ("box", "flip", "factors", "gray", "sigma", "solarize", "invert")
    return view_parameters(
        image=torch.from_numpy(shown),
        order=torch.from_numpy(order),
        additive_brightness=spec.additive_brightness,
        tensorflow_color=spec.color == "tensorflow",
        grayscale_first=spec.grayscale_first,
        **{name: torch.from_numpy(getattr(params, name)) for name in names},
    )


def packed_study(params: ViewParams, spec: ViewSpec) -> Tensor | None:
    """int32 `[M, 16]` for rotation, noise, Sobel and cutout, or None where the recipe has none of them."""
    if params.study is None:
        return None
    names = ("turns", "noise", "sobel", "cutout")
    arrays = {name: torch.from_numpy(np.ascontiguousarray(getattr(params.study, name))) for name in names}
    return study_parameters(**arrays, key=torch.from_numpy(params.study.key.astype(np.int64)), fill=spec.cutout_fill)


def render(
    images: Tensor | Sequence[Tensor],
    params: ViewParams,
    spec: ViewSpec,
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
    std: tuple[float, float, float] = (1.0, 1.0, 1.0),
    *,
    shown: NDArray[np.int64] | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Tensor:
    """Render views of images, one a row of parameters.

    Args:
        images, params, spec, mean, std, shown: as in `fastssl.data.render.render`.
        dtype: float32, or float16 or bfloat16: then the work in between is float16.
        channels_last: memory order of the result.

    Returns:
        `[M, 3, S, S]`; in float32 equal to the torch renderer's to fp32 rounding.

    Raises:
        ValueError: without `shown`, M is no multiple of N; images of another type; a box outside its image.
    """
    n, count = len(images), len(params)
    if shown is None:
        if n == 0 or count % n:
            raise ValueError(f"params must have a multiple of {n} rows (one a view of each image), got {count}")
        shown = np.arange(count) % n
    return render_views(
        images,
        packed(params, spec, shown),
        spec.size,
        interpolation=spec.interpolation,
        blur=spec.blur_kind,
        mean=mean,
        std=std,
        dtype=dtype,
        channels_last=channels_last,
        study=packed_study(params, spec),
    )
