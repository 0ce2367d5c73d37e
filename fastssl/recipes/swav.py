"""SwAV's constants (arXiv 2006.09882, section 4 and app. A; the authors' code)."""

from __future__ import annotations

from dataclasses import replace

from ..config import Config, MonitorConfig, TrainConfig
from ..data.views import CenterCrop
from ..methods.swav import SwAVConfig
from ..models import BackboneConfig
from ..optim import OptimConfig
from . import simclr
from .augmentations import SWAV

_PAPER = SwAVConfig(
    temperature=0.1, epsilon=0.05, iterations=3, hidden=2048, out=128, prototypes=3000, assign=2, freeze_steps=313
)
IMAGENET_800EP = Config(
    recipe="imagenet-800ep",
    method=_PAPER,
    backbone=BackboneConfig(name="resnet50", stem="imagenet", width=1.0, zero_init_residual=False),
    augment=SWAV,
    evaluate=CenterCrop(size=224, crop=0.875, interpolation="bilinear"),
    optim=OptimConfig(
        name="lars",
        lr=0.3,
        lr_scaling="linear",
        momentum=0.9,
        weight_decay=1e-6,
        lars_variant="C",
        lars_eta=0.001,
        exclude="none",
        warmup_epochs=10,
        warmup_start=0.0625,
        final_lr=0.001,
    ),
    train=TrainConfig(epochs=800, batch_size=4096, precision="bf16"),
    monitor=MonitorConfig(knn_epochs=10),
)
"""Batch 4096, lr 4.8 from 0.3 and down to 0.0048; 75.3 % linear."""

IMAGENET_200EP_BATCH256 = replace(
    IMAGENET_800EP,
    recipe="imagenet-200ep-batch256",
    method=replace(_PAPER, freeze_steps=5005, queue=3840, queue_epoch=15.0),
    optim=replace(IMAGENET_800EP.optim, lr=0.6, warmup_epochs=0),
    train=replace(IMAGENET_800EP.train, epochs=200, batch_size=256),
)
"""The authors' small-batch command: a queue of 3,840 from epoch 15, no warm-up, lr 0.6 to 0.0006."""

CIFAR10_SMALL = replace(
    simclr.CIFAR10_SMALL,
    method=SwAVConfig(
        temperature=0.1, epsilon=0.005, iterations=10, hidden=512, out=128, prototypes=300, freeze_steps=40
    ),
)
"""Ours, for two CPU cores: two crops of 32 pixels, fewer prototypes than a batch has views.

In runs of two to three epochs ε mattered most, and the published 0.05 left the codes spread over many prototypes. So
hard a code needs more of Sinkhorn's iterations."""

_SMALL_CROP = replace(CIFAR10_SMALL.augment.views[0], size=16, count=2, scale=(0.08, 0.3))
CIFAR10_SMALL_MULTICROP = replace(
    CIFAR10_SMALL,
    recipe="cifar10-small-multicrop",
    augment=replace(
        CIFAR10_SMALL.augment, views=(replace(CIFAR10_SMALL.augment.views[0], scale=(0.3, 1.0)), _SMALL_CROP)
    ),
)
"""The same with two crops of 16 pixels beside the two of 32."""

QUICK = replace(
    simclr.QUICK,
    method=SwAVConfig(
        temperature=0.2, epsilon=0.002, iterations=20, hidden=256, out=64, prototypes=300, freeze_steps=62
    ),
    augment=replace(simclr.QUICK.augment, views=(replace(simclr.QUICK.augment.views[0], grayscale=1.0),)),
    train=replace(simclr.QUICK.train, batch_size=64, epochs=54),
)
"""Ours, for the built-in shapes, with SimCLR's views for them, all gray: kNN 76 %, from 22 % of the untrained network.

The centred scores of two views of one image hardly correlate before training, and the features only spread where that
correlation times τ / ε exceeds 1: with τ 0.1 and ε 0.05 the loss stays at ln K. So hard a code needs more of Sinkhorn's
iterations. Then small batches and many prototypes mattered most."""

RECIPES: dict[str, Config] = {
    config.recipe: config
    for config in (IMAGENET_800EP, IMAGENET_200EP_BATCH256, CIFAR10_SMALL, CIFAR10_SMALL_MULTICROP, QUICK)
}


def swav(recipe: str = "imagenet-800ep") -> Config:
    """A SwAV recipe by name."""
    return RECIPES[recipe]
