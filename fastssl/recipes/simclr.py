"""SimCLR's constants: the paper (arXiv 2002.05709), the authors' code, CIFAR-10, and two recipes of our own.

Paper and code differ in two places. Weight decay: the paper says 1e-6, the command in the code's README 1e-4 (it is in
the 100-epoch recipe, which reproduces that command). Projector: the paper has 2 layers, the later code 3 by default.
Brightness is a factor, as in that code; the first code added an offset (`additive_brightness`). Contrast and saturation
are TensorFlow's, which the code calls.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import BUILTIN, Config, MonitorConfig, TrainConfig
from ..data.views import Augmentation, CenterCrop, ViewSpec
from ..methods.simclr import SimCLRConfig
from ..models import BackboneConfig
from ..optim import OptimConfig

_PAPER = SimCLRConfig(temperature=0.1, hidden=0, out=128, layers=2, reduction="sum")
IMAGENET_1000EP = Config(
    recipe="imagenet-1000ep",
    method=_PAPER,
    backbone=BackboneConfig(name="resnet50", stem="imagenet", width=1.0, zero_init_residual=True),
    augment=Augmentation(
        views=(
            ViewSpec(
                size=224,
                count=2,
                scale=(0.08, 1.0),
                ratio=(3 / 4, 4 / 3),
                sampler="tensorflow",
                interpolation="bicubic",
                flip=0.5,
                jitter=0.8,
                brightness=0.8,
                contrast=0.8,
                saturation=0.8,
                hue=0.2,
                color="tensorflow",
                grayscale=0.2,
                blur=0.5,
                blur_sigma=(0.1, 2.0),
                blur_kind="gaussian",
            ),
        ),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    ),
    evaluate=CenterCrop(size=224, crop=0.875, interpolation="bicubic"),
    optim=OptimConfig(
        name="lars",
        lr=0.3,
        lr_scaling="linear",
        momentum=0.9,
        weight_decay=1e-6,
        lars_variant="A",
        lars_eta=0.001,
        exclude="bias_and_norm",
        warmup_epochs=10,
    ),
    train=TrainConfig(epochs=1000, batch_size=4096, precision="bf16"),
    monitor=MonitorConfig(knn_epochs=10),
)
"""The paper's longest run: ResNet-50, batch 4096, LARS, lr 0.3 · B / 256 = 4.8, 10 epochs of warm-up, cosine."""

IMAGENET_100EP = replace(
    IMAGENET_1000EP,
    recipe="imagenet-100ep",
    method=replace(_PAPER, layers=3),
    optim=replace(IMAGENET_1000EP.optim, lr=0.075, lr_scaling="sqrt", weight_decay=1e-4),
    train=replace(IMAGENET_1000EP.train, epochs=100),
)
"""The command in the authors' README: 3-layer projector, lr 0.075 · √B, weight decay 1e-4, 100 epochs; about 64.5 %."""

CIFAR10 = replace(
    IMAGENET_1000EP,
    recipe="cifar10",
    method=SimCLRConfig(temperature=0.5, layers=3),
    backbone=BackboneConfig(name="resnet18", stem="cifar"),
    augment=Augmentation(
        views=(
            replace(
                IMAGENET_1000EP.augment.views[0],
                size=32,
                brightness=0.4,
                contrast=0.4,
                saturation=0.4,
                hue=0.1,
                blur=0.0,
            ),
        )
    ),
    evaluate=CenterCrop(size=32, crop=1.0, interpolation="bicubic"),
    optim=replace(IMAGENET_1000EP.optim, lr=1.0, lr_scaling="linear", weight_decay=1e-4),
    train=TrainConfig(epochs=1000, batch_size=512),
)
"""The authors' CIFAR-10 command: ResNet-18, no blur, colour strength 0.5, τ 0.5, lr 1.0 per 256 images,
batch 512; about 91 % linear."""

CIFAR10_SMALL = replace(
    CIFAR10,
    recipe="cifar10-small",
    method=SimCLRConfig(temperature=0.1, hidden=512, out=128, layers=2, init_std=0.0, reduction="mean"),
    backbone=BackboneConfig(name="resnet10", stem="cifar-s2", width=0.5, zero_init_residual=False),
    augment=Augmentation(
        views=(
            replace(
                CIFAR10.augment.views[0],
                scale=(0.2, 1.0),
                sampler="attempts",
                interpolation="bilinear",
                color="torchvision",
            ),
        )
    ),
    optim=OptimConfig(
        name="adamw", lr=4e-3, lr_scaling="none", weight_decay=0.1, exclude="bias_and_norm", warmup_epochs=1
    ),
    train=TrainConfig(epochs=22, batch_size=256, precision="auto"),
    monitor=MonitorConfig(knn_epochs=5, linear=True),
)
"""Ours, for two CPU cores and minutes instead of hours: a quarter-cost ResNet-10 of half width, AdamW.

In runs of two epochs the temperature mattered most; batch 128 or 512, half the learning rate, milder crops, stronger
colour and a deeper projector moved kNN little, or down."""

QUICK = replace(
    CIFAR10_SMALL,
    data=BUILTIN,
    recipe="quick",
    method=SimCLRConfig(temperature=0.2, hidden=256, out=64, layers=2, init_std=0.0, reduction="mean"),
    backbone=BackboneConfig(name="resnet10", stem="cifar-s2", width=0.25, zero_init_residual=False),
    augment=Augmentation(
        views=(
            ViewSpec(
                size=32,
                count=2,
                scale=(0.5, 1.0),
                interpolation="bilinear",
                brightness=0.6,
                contrast=0.6,
                saturation=0.8,
                hue=0.5,
                grayscale=0.5,
                blur=0.0,
                invert=0.5,
            ),
        )
    ),
    optim=replace(CIFAR10_SMALL.optim, lr=6e-3, weight_decay=0.01),
    train=TrainConfig(epochs=40, batch_size=256, precision="auto"),
    monitor=MonitorConfig(knn_epochs=5, linear=True),
)
"""Ours, for the built-in shapes. There colour is what tells two images apart: with CIFAR's mild jitter the network
matches views by colour and learns no shape. So hue turns over the whole wheel, half the views are
gray and half are inverted, and crops keep at least half of the image, so that the shape stays inside."""

QUICK_MILD = replace(QUICK.augment, views=(replace(QUICK.augment.views[0], hue=0.1, grayscale=0.2, invert=0.0),))
"""Views of the built-in shapes that have more in common: no inversion, a little hue, colour in most. For methods that
push images apart less, or with old keys, and lose their way among SimCLR's."""

RECIPES: dict[str, Config] = {
    config.recipe: config for config in (IMAGENET_1000EP, IMAGENET_100EP, CIFAR10, CIFAR10_SMALL, QUICK)
}


def simclr(recipe: str = "imagenet-1000ep") -> Config:
    """A SimCLR recipe by name."""
    return RECIPES[recipe]
