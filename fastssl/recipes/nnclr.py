"""NNCLR's constants (arXiv 2104.14548; there is no official code, the heads are those on which other code agrees)."""

from __future__ import annotations

from dataclasses import replace

from ..config import Config
from ..methods.nnclr import NNCLRConfig
from . import simclr
from .augmentations import BYOL, small_images

IMAGENET_1000EP = replace(
    simclr.IMAGENET_1000EP,
    method=NNCLRConfig(temperature=0.1, hidden=2048, out=256, predictor_hidden=4096, queue=98_304),
    augment=BYOL,
    optim=replace(simclr.IMAGENET_1000EP.optim, lars_variant="B"),
)
"""ResNet-50, batch 4096, LARS lr 0.3 · B / 256, weight decay 1e-6, the views of BYOL; 75.4 % linear in the paper."""

CIFAR10_SMALL = replace(
    simclr.CIFAR10_SMALL,
    method=NNCLRConfig(temperature=0.1, hidden=512, out=128, predictor_hidden=512, queue=8192),
    augment=replace(
        simclr.CIFAR10_SMALL.augment, views=small_images(BYOL.views, simclr.CIFAR10_SMALL.augment.views[0])
    ),
)
"""Ours, for two CPU cores."""

QUICK = replace(
    simclr.QUICK,
    method=NNCLRConfig(temperature=0.2, hidden=256, out=64, predictor_hidden=256, queue=2048),
    train=replace(simclr.QUICK.train, epochs=52),
)
"""Ours, for the built-in shapes, with SimCLR's views for them: kNN 74 %, from 22 % of the untrained network."""

RECIPES: dict[str, Config] = {config.recipe: config for config in (IMAGENET_1000EP, CIFAR10_SMALL, QUICK)}


def nnclr(recipe: str = "imagenet-1000ep") -> Config:
    """An NNCLR recipe by name."""
    return RECIPES[recipe]
