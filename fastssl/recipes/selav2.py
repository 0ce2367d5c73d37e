"""SeLa-v2's constants (arXiv 2006.09882, app. D), as far as they are known: there is no published training code.

Read from the authors: it is DeepCluster-v2's script with labels from Sinkhorn's iterations instead of k-means and
prototypes that learn by gradient as SwAV's do; runs of 400 epochs with batch 4096, on 2 × 160 + 4 × 96 (71.8 % linear)
and on 2 × 224 (67.2 %). Not known, and taken from DeepCluster-v2 and SwAV: the number of heads and prototypes, ε and
the iterations, how long prototypes are frozen, crop scales and learning rates; and that labels are hard.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import Config
from ..methods.selav2 import SeLaV2Config
from . import deepclusterv2, simclr

_PAPER = SeLaV2Config(
    temperature=0.1,
    hidden=2048,
    out=128,
    prototypes=3000,
    heads=3,
    assign=2,
    iterations=3,
    epsilon=0.05,
    freeze_steps=313,
)

IMAGENET_400EP = replace(deepclusterv2.IMAGENET_400EP, method=_PAPER)
"""2 × 160 + 4 × 96, batch 4096; 71.8 % linear."""

IMAGENET_400EP_2X224 = replace(deepclusterv2.IMAGENET_400EP_2X224, method=_PAPER)
"""Two large crops only; 67.2 % linear."""

CIFAR10_SMALL = replace(
    simclr.CIFAR10_SMALL,
    method=SeLaV2Config(temperature=0.1, hidden=512, out=128, prototypes=300, epsilon=0.05, freeze_steps=40),
)
"""Ours, for two CPU cores."""

QUICK = replace(
    simclr.QUICK,
    method=SeLaV2Config(
        temperature=0.2,
        hidden=256,
        out=16,
        prototypes=36,
        heads=6,
        iterations=50,
        epsilon=0.01,
        freeze_steps=62,
    ),
    augment=replace(
        simclr.QUICK.augment,
        views=(replace(simclr.QUICK.augment.views[0], brightness=0.5, contrast=0.5, grayscale=1.0, invert=0.0),),
    ),
    optim=replace(simclr.QUICK.optim, name="sgd", lr=0.2, weight_decay=1e-4),
    train=replace(simclr.QUICK.train, epochs=30, batch_size=64),
)
"""Ours, for the built-in shapes: kNN 64 %, from 22 % of the untrained network.

An untrained network's labels can be predicted from another view only a little better than by chance, and the remembered
embeddings drift through an epoch. So the views are gray and none is inverted, six heads have few prototypes in a narrow
space, and SGD moves them. The codes are hard, so that Sinkhorn's iterations are many."""

RECIPES: dict[str, Config] = {
    config.recipe: config for config in (IMAGENET_400EP, IMAGENET_400EP_2X224, CIFAR10_SMALL, QUICK)
}


def selav2(recipe: str = "imagenet-400ep") -> Config:
    """A SeLa-v2 recipe by name."""
    return RECIPES[recipe]
