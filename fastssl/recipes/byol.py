"""BYOL's constants (arXiv 2006.07733, section 3.3 and app. C; the authors' code), by length of the run."""

from __future__ import annotations

from dataclasses import replace

from ..config import Config, MonitorConfig, TrainConfig
from ..data.views import CenterCrop
from ..methods.byol import BYOLConfig
from ..models import BackboneConfig
from ..optim import OptimConfig
from . import simclr
from .augmentations import BYOL, small_images

IMAGENET_1000EP = Config(
    recipe="imagenet-1000ep",
    method=BYOLConfig(hidden=4096, out=256, momentum=0.996),
    backbone=BackboneConfig(name="resnet50", stem="imagenet", width=1.0, zero_init_residual=True),
    augment=BYOL,
    evaluate=CenterCrop(size=224, crop=0.875, interpolation="bicubic"),
    optim=OptimConfig(
        name="lars",
        lr=0.2,
        lr_scaling="linear",
        momentum=0.9,
        weight_decay=1.5e-6,
        lars_variant="B",
        lars_eta=0.001,
        exclude="bias_and_norm",
        warmup_epochs=10,
    ),
    train=TrainConfig(epochs=1000, batch_size=4096, precision="bf16"),
    monitor=MonitorConfig(knn_epochs=10),
)
"""74.3 % linear in the paper."""


def _preset(epochs: int, lr: float, weight_decay: float, momentum: float) -> Config:
    return replace(
        IMAGENET_1000EP,
        recipe=f"imagenet-{epochs}ep",
        method=BYOLConfig(hidden=4096, out=256, momentum=momentum),
        optim=replace(IMAGENET_1000EP.optim, lr=lr, weight_decay=weight_decay),
        train=replace(IMAGENET_1000EP.train, epochs=epochs),
    )


IMAGENET_300EP = _preset(300, 0.3, 1e-6, 0.99)
IMAGENET_100EP = _preset(100, 0.45, 1e-6, 0.99)
IMAGENET_40EP = _preset(40, 0.45, 1e-6, 0.97)

CIFAR10_SMALL = replace(
    simclr.CIFAR10_SMALL,
    method=BYOLConfig(hidden=512, out=128, momentum=0.9, projector_norm=True),
    augment=replace(
        simclr.CIFAR10_SMALL.augment, views=small_images(BYOL.views, simclr.CIFAR10_SMALL.augment.views[0])
    ),
)
"""Ours, for two CPU cores; the target follows faster than in a long run, and a norm after the projector takes the mean
from its outputs."""

QUICK = replace(
    simclr.QUICK,
    method=BYOLConfig(hidden=512, out=64, momentum=0.9, projector_norm=True),
    augment=simclr.QUICK_MILD,
    optim=replace(simclr.QUICK.optim, lr=0.012, weight_decay=0.05),
    train=replace(simclr.QUICK.train, batch_size=64),
)
"""Ours, for the built-in shapes: kNN 70 %, from 22 % of the untrained network.

Nothing pushes images apart here, so two views must have more in common than in SimCLR's recipe from the start. Without
the norm after the projector the predictor says little more than the mean of the targets; then a fast target and twice
the learning rate mattered most."""

RECIPES: dict[str, Config] = {
    config.recipe: config
    for config in (IMAGENET_1000EP, IMAGENET_300EP, IMAGENET_100EP, IMAGENET_40EP, CIFAR10_SMALL, QUICK)
}


def byol(recipe: str = "imagenet-1000ep") -> Config:
    """A BYOL recipe by name."""
    return RECIPES[recipe]
