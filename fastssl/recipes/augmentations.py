"""The published view distributions that several methods share."""

from __future__ import annotations

from dataclasses import replace

from ..data.views import Augmentation, ViewSpec

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_BYOL_VIEW = ViewSpec(
    size=224,
    count=1,
    scale=(0.08, 1.0),
    ratio=(3 / 4, 4 / 3),
    sampler="clip",
    interpolation="bicubic",
    flip=0.5,
    jitter=0.8,
    brightness=0.4,
    contrast=0.4,
    saturation=0.2,
    hue=0.1,
    color="tensorflow",
    additive_brightness=True,
    grayscale=0.2,
    blur=1.0,
    blur_sigma=(0.1, 2.0),
    blur_kind="gaussian",
)

BYOL = Augmentation(
    views=(_BYOL_VIEW, replace(_BYOL_VIEW, blur=0.1, solarize=0.2)), mean=IMAGENET_MEAN, std=IMAGENET_STD
)
"""BYOL's two unlike views (arXiv 2006.07733, app. B): one always blurred, one seldom but sometimes solarized. As in
the authors' code, brightness is an offset, contrast is a channel's own and saturation is that of HSV."""

_MOCO_VIEW = ViewSpec(
    size=224,
    count=2,
    scale=(0.2, 1.0),
    ratio=(3 / 4, 4 / 3),
    sampler="attempts",
    interpolation="bilinear",
    flip=0.5,
    jitter=0.8,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    grayscale=0.2,
    blur=0.5,
    blur_sigma=(0.1, 2.0),
    blur_kind="pil",
)

MOCO_V2 = Augmentation(views=(_MOCO_VIEW,), mean=IMAGENET_MEAN, std=IMAGENET_STD)
"""MoCo v2 (arXiv 2003.04297): milder crops and jitter than SimCLR's, PIL's blur."""

MOCO_V1 = Augmentation(
    views=(replace(_MOCO_VIEW, jitter=1.0, hue=0.4, blur=0.0, grayscale_first=True),),
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)
"""MoCo v1's code: grayscale before the jitter, which every view gets, with a wide hue; no blur."""


_SWAV_VIEW = replace(_MOCO_VIEW, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)

SWAV = Augmentation(
    views=(
        replace(_SWAV_VIEW, size=224, count=2, scale=(0.14, 1.0)),
        replace(_SWAV_VIEW, size=96, count=6, scale=(0.05, 0.14)),
    ),
    mean=IMAGENET_MEAN,
    std=(0.228, 0.224, 0.225),
)
"""SwAV's multi-crop, 2 × 224 + 6 × 96 (arXiv 2006.09882, app. A); red's deviation 0.228 is the authors' code's."""

RELICV2_BACKGROUND_REMOVAL = 0.1
"""Share of RELICv2's large crops that are cut from the image without its background; reported at second hand."""

RELICV2 = Augmentation(
    views=(
        replace(_BYOL_VIEW, count=2, background_removal=RELICV2_BACKGROUND_REMOVAL),
        replace(_BYOL_VIEW, count=2, blur=0.1, solarize=0.2, background_removal=RELICV2_BACKGROUND_REMOVAL),
        replace(_BYOL_VIEW, count=1, size=96, scale=(0.05, 0.14)),
        replace(_BYOL_VIEW, count=1, size=96, scale=(0.05, 0.14), blur=0.1, solarize=0.2),
    ),
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)
"""RELICv2's 4 × 224 + 2 × 96 (arXiv 2201.05119) with BYOL's two kinds of views; the scale of small crops is SwAV's, as
no official training code states it. Large crops lose their background with the masks of `--masks`."""


SUPERVISED = Augmentation(
    views=(replace(_MOCO_VIEW, count=1, scale=(0.08, 1.0), jitter=0.0, grayscale=0.0, blur=0.0),),
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)
"""One crop of 8 to 100 % of the area, mirrored half the time: what supervised baselines train on."""


def small_images(views: tuple[ViewSpec, ...], like: ViewSpec) -> tuple[ViewSpec, ...]:
    """Views for images of 32 pixels: size, crop and colour strength of `like`, no blur; what tells the views of a
    recipe apart (solarize) stays."""
    return tuple(
        replace(
            view,
            size=like.size,
            scale=like.scale,
            sampler=like.sampler,
            interpolation=like.interpolation,
            brightness=like.brightness,
            contrast=like.contrast,
            saturation=like.saturation,
            hue=like.hue,
            color=like.color,
            additive_brightness=False,
            blur=0.0,
        )
        for view in views
    )
