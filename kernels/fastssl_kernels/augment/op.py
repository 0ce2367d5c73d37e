"""Views of decoded images: validation and dispatch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..check import kind, whole
from .parameters import WORDS, column
from .reference import render_views_reference
from .study import STUDY_WORDS, study_column

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LEAST_SIZE = 8


def render_views(
    images: Tensor | Sequence[Tensor],
    parameters: Tensor,
    size: int,
    *,
    interpolation: Literal["bilinear", "bicubic"] = "bicubic",
    blur: Literal["gaussian", "pil"] = "gaussian",
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    study: Tensor | None = None,
) -> Tensor:
    """Crop, resize, mirror, colour, blur and normalise: M views of N images of any sizes, one a row of parameters.

    Three kernel launches on CUDA (five with PIL's blur; fewer where no view has contrast or blur; one more with
    `study`), without synchronisation. float32 results are exact to float32 rounding. For 16-bit results the products
    and what lies between the launches are float16: levels in [0, 1] are off by up to 1e-3 (in the mean 1e-5) besides
    the rounding of the result. On the CPU the reference draws the views, one after another.

    Args:
        images: uint8 `[N, H, W, 3]`, or N tensors `[H, W, 3]`.
        parameters: float32 `[M, 16]` from `view_parameters`, on the CPU, or on the device of the images. On the CPU
            they are checked and sent in one transfer together with the addresses of the images. On the device they are
            trusted: a crop must lie inside its image. With `[N, H, W, 3]` images nothing is sent then, and the
            launches can be captured in a CUDA graph.
        size: S ≥ 8, side of the views in pixels.
        interpolation: antialiased resampling filter.
        blur: "gaussian", of 2·((S // 10) // 2) + 1 taps with reflected borders, or "pil", PIL's three box blurs.
        mean, std: subtracted from, and divided out of, the three channels last.
        dtype: float32, float16 or bfloat16.
        channels_last: memory order of the result.
        study: int32 `[M, 16]` from `study_parameters`: rotation, noise, Sobel and cutout. On the CPU, or on the device
            of the images, where it is trusted.

    Returns:
        `[M, 3, S, S]` on the device of the images.

    Raises:
        ValueError: other shapes or devices, no image, an image that does not exist or a crop outside its image, an
            option out of range.
        TypeError: images that are not uint8, parameters that are not float32, another dtype.
    """
    if not isinstance(images, (Tensor, Sequence)):
        raise TypeError(f"images must be a tensor or a sequence of tensors, got {kind(images)}")
    stacked = isinstance(images, Tensor)
    listed: list[Tensor] = [images] if isinstance(images, Tensor) else list(images)
    _check_images(listed, 4 if stacked else 3)
    _check_parameters(listed, parameters)
    whole("size", size, LEAST_SIZE)
    if study is not None:
        _check_study(listed, parameters, study, size)
    if interpolation not in ("bilinear", "bicubic"):
        raise ValueError(f"interpolation must be 'bilinear' or 'bicubic', got {interpolation!r}")
    if blur not in ("gaussian", "pil"):
        raise ValueError(f"blur must be 'gaussian' or 'pil', got {blur!r}")
    if dtype not in DTYPES:
        raise TypeError(f"dtype must be float32, float16 or bfloat16, got {dtype}")
    for name, numbers in (("mean", mean), ("std", std)):
        if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
            raise ValueError(f"{name} must be three finite numbers, got {tuple(numbers)}")
    if not all(std):
        raise ValueError(f"std must not be 0, got {tuple(std)}")
    return _render_views(
        listed,
        parameters,
        size,
        interpolation == "bicubic",
        blur == "pil",
        [float(number) for number in mean],
        [float(number) for number in std],
        dtype,
        channels_last,
        study,
    )


def _check_images(images: list[Tensor], dimensions: int) -> None:
    if not images or (dimensions == 4 and images[0].ndim == 4 and not images[0].shape[0]):
        raise ValueError("images must hold at least one image")
    for i, image in enumerate(images):
        if not isinstance(image, Tensor):
            raise TypeError(f"images[{i}] must be a uint8 tensor, got {kind(image)}")
    device = images[0].device
    wanted = "[N, H, W, 3]" if dimensions == 4 else "[H, W, 3]"
    for i, image in enumerate(images):
        name = "images" if dimensions == 4 else f"images[{i}]"
        if image.dtype != torch.uint8:
            raise TypeError(f"{name} must be uint8, got {image.dtype}")
        if image.ndim != dimensions or image.shape[-1] != 3 or 0 in image.shape:
            raise ValueError(f"{name} must be {wanted} with at least one pixel, got {list(image.shape)}")
        if image.device != device:
            raise ValueError(f"all images must be on {device}, got {image.device} at index {i}")


def _check_parameters(images: list[Tensor], parameters: Tensor) -> None:
    if not isinstance(parameters, Tensor):
        raise TypeError(f"parameters must be a float32 tensor from view_parameters, got {kind(parameters)}")
    if parameters.ndim != 2 or parameters.shape[1] != WORDS:
        raise ValueError(f"parameters must be [M, {WORDS}] from view_parameters, got {list(parameters.shape)}")
    if parameters.dtype != torch.float32:
        raise TypeError(f"parameters must be float32, got {parameters.dtype}")
    if parameters.device.type != "cpu" and parameters.device != images[0].device:
        raise ValueError(f"parameters must be on the CPU or on {images[0].device}, got {parameters.device}")


def _check_study(images: list[Tensor], parameters: Tensor, study: Tensor, size: int) -> None:
    if study.shape != (parameters.shape[0], STUDY_WORDS) or study.dtype != torch.int32:
        raise ValueError(
            f"study must be int32 {[parameters.shape[0], STUDY_WORDS]} from study_parameters, got {study.dtype} "
            f"{list(study.shape)}"
        )
    if study.device.type != "cpu" and study.device != images[0].device:
        raise ValueError(f"study must be on the CPU or on {images[0].device}, got {study.device}")
    if study.device.type == "cpu":
        first = study_column("top")
        stop = study[:, first : first + 2].amax(1) + study[:, first + 2]
        if (stop > size).any():
            raise ValueError(f"study must fill squares inside views of {size} pixels, got one up to {stop.max()}")


def _check_crops(images: Sequence[Tensor], parameters: Tensor) -> None:
    """The kernels trust the parameters: those that can be read without waiting for a device are checked here."""
    if images[0].ndim == 4:
        sides = torch.tensor(images[0].shape[1:3]).expand(images[0].shape[0], 2)
    else:
        sides = torch.tensor([image.shape[:2] for image in images])
    image = parameters[:, column("image")]
    if not ((image >= 0) & (image < len(sides)) & (image == image.round())).all():
        raise ValueError(f"parameters must name one of {len(sides)} images, got {image.min():g} to {image.max():g}")
    start, length = parameters[:, 0:2], parameters[:, 2:4]
    inside = ((start >= 0) & (length >= 1) & (start + length <= sides[image.long()])).all(1)
    if not inside.all():
        row = int((~inside).nonzero()[0, 0])
        height, width = sides[int(image[row])].tolist()
        raise ValueError(
            f"the crop of view {row}, {parameters[row, :4].tolist()} (y0, x0, height, width), must lie inside its "
            f"image of {height} × {width} pixels"
        )


@torch.library.custom_op("fastssl::render_views", mutates_args=(), device_types="cpu")
def _render_views(
    images: list[Tensor],
    parameters: Tensor,
    size: int,
    bicubic: bool,
    pil: bool,
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
    channels_last: bool,
    study: Tensor | None = None,
) -> Tensor:
    _check_crops(images, parameters)
    views = render_views_reference(
        images[0] if images[0].ndim == 4 else images,
        parameters,
        size,
        interpolation="bicubic" if bicubic else "bilinear",
        blur="pil" if pil else "gaussian",
        mean=mean,
        std=std,
        dtype=torch.float32,
        study=study,
    )
    return views.to(dtype, memory_format=_layout(channels_last))


@_render_views.register_kernel("cuda")
def _(
    images: list[Tensor],
    parameters: Tensor,
    size: int,
    bicubic: bool,
    pil: bool,
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
    channels_last: bool,
    study: Tensor | None = None,
) -> Tensor:
    from . import launch  # Triton does not exist everywhere that torch does

    if parameters.device.type == "cpu":
        _check_crops(images, parameters)
    images = [image.contiguous() for image in images]
    return launch.render(images, parameters, size, bicubic, pil, mean, std, dtype, channels_last, study)


@_render_views.register_fake
def _(
    images: list[Tensor],
    parameters: Tensor,
    size: int,
    bicubic: bool,
    pil: bool,
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
    channels_last: bool,
    study: Tensor | None = None,
) -> Tensor:
    shape = (parameters.shape[0], 3, size, size)
    return torch.empty(shape, dtype=dtype, device=images[0].device, memory_format=_layout(channels_last))


def _layout(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format
