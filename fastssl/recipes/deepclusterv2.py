"""DeepCluster-v2's constants (arXiv 2006.09882, app. D; the authors' code), on SwAV's networks, views and schedule.

Read in the authors' script and commands: 3 heads of 3,000 clusters, 10 iterations of k-means from random rows of the
memory, features of width 128, τ 0.1, both large crops remembered and the heads alternating between them, the views,
optimizer, learning rates and batch; and prototypes frozen for 300,000 steps, more than any of the runs has, so that
here they never learn. Their memory follows the order of the last epoch and forgets the images that it left out; ours
goes by image and keeps them. The paper's appendix was not read again: its number is from memory.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import Config
from ..methods.deepclusterv2 import DeepClusterV2Config
from . import simclr, swav

_PAPER = DeepClusterV2Config(temperature=0.1, hidden=2048, out=128, prototypes=3000, heads=3, assign=2, iterations=10)
_LARGE, _SMALL = swav.IMAGENET_800EP.augment.views

IMAGENET_800EP = replace(swav.IMAGENET_800EP, method=_PAPER)
"""2 × 224 + 6 × 96, batch 4096, lr 4.8 from 0.3 and down to 0.0048; 75.2 % linear."""

IMAGENET_400EP = replace(
    IMAGENET_800EP,
    recipe="imagenet-400ep",
    augment=replace(
        IMAGENET_800EP.augment,
        views=(replace(_LARGE, size=160, scale=(0.08, 1.0)), replace(_SMALL, count=4)),
    ),
    train=replace(IMAGENET_800EP.train, epochs=400),
)
"""2 × 160 + 4 × 96; 74.3 % linear."""

IMAGENET_400EP_2X224 = replace(
    IMAGENET_400EP,
    recipe="imagenet-400ep-2x224",
    augment=replace(IMAGENET_800EP.augment, views=(replace(_LARGE, scale=(0.08, 1.0)),)),
)
"""Two large crops only; 70.2 % linear."""

CIFAR10_SMALL = replace(
    simclr.CIFAR10_SMALL, method=DeepClusterV2Config(temperature=0.1, hidden=512, out=128, prototypes=300)
)
"""Ours, for two CPU cores."""

QUICK = replace(simclr.QUICK, method=DeepClusterV2Config(temperature=0.1, hidden=256, out=64, prototypes=100))
"""Ours, for the built-in shapes, with SimCLR's views for them: kNN 58 %, from 22 % of the untrained network."""

RECIPES: dict[str, Config] = {
    config.recipe: config for config in (IMAGENET_800EP, IMAGENET_400EP, IMAGENET_400EP_2X224, CIFAR10_SMALL, QUICK)
}


def deepclusterv2(recipe: str = "imagenet-800ep") -> Config:
    """A DeepCluster-v2 recipe by name."""
    return RECIPES[recipe]
