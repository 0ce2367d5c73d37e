"""Supervised training's constants, as the baselines of self-supervision use them (arXiv 1512.03385; torchvision's).

ResNet-50, batch 256, SGD, learning rate 0.1 · B / 256 that falls to a tenth at epochs 30 and 60 of 90, weight decay
1e-4 on every parameter. These, and the classifier's first weights, are from memory of the papers and of torchvision's
reference, not read again here.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import Config, MonitorConfig, TrainConfig
from ..data.views import CenterCrop
from ..methods.supervised import SupervisedConfig
from ..models import BackboneConfig
from ..optim import OptimConfig
from . import simclr
from .augmentations import SUPERVISED, small_images

IMAGENET_90EP = Config(
    recipe="imagenet-90ep",
    method=SupervisedConfig(label_smoothing=0.0),
    backbone=BackboneConfig(name="resnet50", stem="imagenet", width=1.0, zero_init_residual=False),
    augment=SUPERVISED,
    evaluate=CenterCrop(size=224, crop=0.875, interpolation="bilinear"),
    optim=OptimConfig(
        name="sgd",
        lr=0.1,
        lr_scaling="linear",
        momentum=0.9,
        weight_decay=1e-4,
        exclude="none",
        schedule="steps",
        milestones=(30, 60),
        warmup_epochs=0,
    ),
    train=TrainConfig(epochs=90, batch_size=256, precision="bf16"),
    monitor=MonitorConfig(knn_epochs=10),
)
"""About 76 % top-1: torchvision's first weights of ResNet-50 have 76.1 %."""

_SMALL = simclr.CIFAR10_SMALL
CIFAR10_SMALL = replace(
    _SMALL,
    method=SupervisedConfig(label_smoothing=0.0),
    augment=replace(_SMALL.augment, views=small_images(SUPERVISED.views, _SMALL.augment.views[0])),
)
"""Ours, for two CPU cores: the network and optimizer of SimCLR's small recipe, one crop without its colours."""

QUICK = replace(
    simclr.QUICK,
    method=SupervisedConfig(label_smoothing=0.0),
    augment=replace(simclr.QUICK.augment, views=(replace(simclr.QUICK.augment.views[0], count=1),)),
)
"""Ours, for the built-in shapes, with one of SimCLR's views for them: kNN 99 %, from 22 % of the untrained network."""

RECIPES: dict[str, Config] = {config.recipe: config for config in (IMAGENET_90EP, CIFAR10_SMALL, QUICK)}


def supervised(recipe: str = "imagenet-90ep") -> Config:
    """A recipe of supervised training by name."""
    return RECIPES[recipe]
