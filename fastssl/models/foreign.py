"""Networks of torchvision and timm without their classifier, and modules of the user's own."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import UserError

MODULE = "module"
"""Stands before the class name of a module that was passed in Python."""


def feature_width(network: nn.Module) -> int:
    """D of a network that `build_backbone` made."""
    return int(network.feature_dim)  # type: ignore[arg-type]


def close_names(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"; close names: {', '.join(close)}" if close else ""


def build_foreign(library: str, name: str, image_size: int, sizes: tuple[int, ...]) -> nn.Module:
    """The untrained network `name` of `library` ("torchvision" or "timm"), tried on images of `sizes`."""
    option = f"--backbone.name {library}:{name}"
    make = partial(_torchvision if library == "torchvision" else _timm, name, image_size)
    # Copies with fresh weights, as BYOL's target, are drawn as the library draws them.
    network = make()
    network.fresh = make  # type: ignore[assignment]
    return measure(network, option, sizes or (image_size or 224,))


def measure(network: nn.Module, what: str, sizes: tuple[int, ...]) -> nn.Module:
    """Try `network` on one image of each size, in evaluation mode, and note its width as `feature_dim`."""
    training = [(module, module.training) for module in network.modules()]
    like = next(network.parameters(), torch.empty(0))
    widths = set()
    try:
        network.eval()
        for size in dict.fromkeys(sizes):
            image = torch.zeros(1, 3, size, size, device=like.device, dtype=like.dtype)
            try:
                with torch.inference_mode():
                    features = network(image)
            except Exception as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise UserError(
                    f"{what} does not take images of {size} × {size} pixels ({reason}): choose another network, other "
                    "view sizes, or --backbone.image-size"
                ) from None
            if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != 1:
                shape = list(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
                raise UserError(f"{what} must return one vector an image, [1, D] for one, got {shape}: pool its output")
            widths.add(features.shape[1])
    finally:
        for module, flag in training:
            module.training = flag
    if len(widths) > 1:
        raise UserError(f"{what} gives {sorted(widths)} features for images of {sizes} pixels: pool its output")
    network.feature_dim = widths.pop()  # type: ignore[assignment]
    return network


def _library(library: str, name: str) -> Any:
    try:
        return importlib.import_module("torchvision.models" if library == "torchvision" else library)
    except ModuleNotFoundError:
        raise UserError(
            f"--backbone.name {library}:{name} needs the package {library}: install it, or choose a network of our own"
        ) from None


def _torchvision(name: str, image_size: int) -> nn.Module:
    models = _library("torchvision", name)
    known = models.list_models(module=models)
    if name not in known:
        raise UserError(f"--backbone.name torchvision:{name} is no classifier of torchvision{close_names(name, known)}")
    accepted = inspect.signature(models.get_model_builder(name)).parameters
    options: dict[str, Any] = {"weights": None}
    if name in ("googlenet", "inception_v3"):  # they return several outputs otherwise, and draw weights for minutes
        options |= {"aux_logits": False, "init_weights": False}
    if image_size:
        options |= _sized("torchvision", name, image_size, "image_size" in accepted or name.startswith("vit_"))
    network = models.get_model(name, **options)
    linear = [path for path, part in network.named_modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise UserError(f"--backbone.name torchvision:{name} ends in no linear classifier that could be removed")
    network.set_submodule(linear[-1], nn.Identity())
    return network


def _timm(name: str, image_size: int) -> nn.Module:
    timm = _library("timm", name)
    if name.partition(".")[0] not in (known := timm.list_models()):
        raise UserError(f"--backbone.name timm:{name} is no network of timm{close_names(name, known)}")
    # Vision transformers of timm take images of any size if they are told to; other networks do not know the option.
    for options in ({"dynamic_img_size": True}, {}):
        sized = {"img_size": image_size} if image_size else {}
        try:
            return timm.create_model(name, pretrained=False, num_classes=0, **options, **sized)
        except TypeError as error:
            if "dynamic_img_size" not in str(error) and "img_size" not in str(error):
                raise
    _sized("timm", name, image_size, False)
    raise AssertionError


def _sized(library: str, name: str, image_size: int, possible: bool) -> dict[str, int]:
    if possible:
        return {"image_size": image_size}
    raise UserError(
        f"--backbone.image-size {image_size} is for networks that are built for one size, {library}:{name} is not: "
        "leave it out"
    )
