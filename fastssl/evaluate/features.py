"""Features of a frozen backbone over a data set, and raw pixels as the baseline that any training must beat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from fastssl.errors import UserError

Batch = tuple[Tensor, Tensor | None, object]
"""Images `[B, 3, S, S]` float32, their classes `[B]` int64 or None, and their ids, as the evaluation iterator gives."""

Precision = Literal["fp32", "bf16", "fp16"]
UNLABELED = -1
"""Stands for the class of an image that has none."""


def extract_features(
    backbone: nn.Module,
    batches: Iterable[Batch],
    *,
    device: torch.device | str,
    precision: Precision = "fp32",
    channels_last: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run `backbone` over `batches` in evaluation mode and collect what it returns.

    The training flag of every submodule is what it was before, also when an image or the backbone raises.

    Args:
        backbone: on `device`; maps images `[B, 3, S, S]` to features `[B, D]` (or `[B, D, 1, 1]`).
        batches: (images, labels or None, ids) triples.
        device: where the images are sent.
        precision: "fp32", or autocast to "bf16" or "fp16".
        channels_last: hand the images over in NHWC memory order.

    Returns:
        features `[N, D]` float32 and labels `[N]` int64 (-1 where there is none), both in the order of `batches` on
        the CPU.

    Raises:
        UserError: no batches, an unknown precision, or an output that is not one vector an image.
    """
    device = torch.device(device)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    features, labels = [], []
    with _evaluating(backbone):
        for images, classes, _ids in batches:
            # Around the network alone: `batches` may be a generator that renders, and must not render in bf16.
            with torch.inference_mode(), _autocast(device, precision):
                output = backbone(images.to(device, non_blocking=True).contiguous(memory_format=memory_format))
            features.append(_vectors(output, len(images)).to("cpu", torch.float32))
            labels.append(_labels(classes, len(images)))
    return _join(features, labels)


def raw_pixel_features(batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """The images themselves as features: `[N, 3·S·S]` float32 pixels and labels `[N]` int64 (-1 where none)."""
    features, labels = [], []
    for images, classes, _ids in batches:
        features.append(images.flatten(1).to("cpu", torch.float32))
        labels.append(_labels(classes, len(images)))
    return _join(features, labels)


def check_features(train_x: Tensor, train_y: Tensor, test_x: Tensor) -> None:
    """Raise `UserError` unless `train_x` `[N, D]` and `train_y` `[N]` can teach a classifier of `test_x` `[M, D]`."""
    if train_x.ndim != 2 or test_x.ndim != 2 or train_x.shape[1] != test_x.shape[1]:
        raise UserError(
            "train_x and test_x must be matrices [samples, dimensions] of equal width, "
            f"got {list(train_x.shape)} and {list(test_x.shape)}"
        )
    check_labels("train", train_x, train_y)
    if len(test_x) == 0:
        raise UserError("test_x is empty: there is nothing to classify")
    if train_y.min() < 0:
        raise UserError("train_y has negative labels: a classifier needs data with a class for every image")
    for name, features in (("train_x", train_x), ("test_x", test_x)):
        if not torch.isfinite(features).all():
            raise UserError(f"{name} has features that are not finite: the backbone has diverged")


def check_labels(name: str, x: Tensor, y: Tensor) -> None:
    """Raise `UserError` unless `y` holds one label for every row of `x`, and at least one."""
    if y.shape != x.shape[:1] or len(y) == 0:
        raise UserError(
            f"{name}_y must hold one label for each row of {name}_x and at least one, "
            f"got labels {list(y.shape)} for features {list(x.shape)}"
        )


@contextmanager
def _evaluating(backbone: nn.Module) -> Iterator[None]:
    training = [(module, module.training) for module in backbone.modules()]
    backbone.eval()
    try:
        yield
    finally:
        # One by one: a frozen part may have been in evaluation mode inside a training backbone.
        for module, flag in training:
            module.training = flag


def _autocast(device: torch.device, precision: str) -> AbstractContextManager:
    dtypes = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision not in dtypes:
        raise UserError(f"precision must be one of {', '.join(dtypes)}, got {precision!r}")
    dtype = dtypes[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def _vectors(output: object, images: int) -> Tensor:
    if isinstance(output, Tensor) and output.ndim >= 2 and output.shape[2:].numel() == 1 and len(output) == images:
        return output.flatten(1)
    shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise UserError(f"backbone must return one feature vector an image, [{images}, D], got {shape}: pool its output")


def _labels(classes: Tensor | None, images: int) -> Tensor:
    return torch.full((images,), UNLABELED) if classes is None else classes.to("cpu", torch.int64)


def _join(features: list[Tensor], labels: list[Tensor]) -> tuple[Tensor, Tensor]:
    if not features:
        raise UserError("batches is empty: there are no images to take features of")
    return torch.cat(features), torch.cat(labels)
