"""How others turn an encoded image into views, with the constants of ours.

* `pil_views`, as solo-learn arranges it: a PIL image through torchvision's first-generation transforms, a list of them
  for each group of views, applied once a view, with PIL's blur.
* `tensor_views`, as torchvision's own references advise: decoded to a uint8 tensor, second-generation transforms on it,
  floats last.

Both draw torchvision's boxes of ten attempts and know the operations of the published recipes, in their order, but for
`additive_brightness`.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as v1
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2
from torchvision.transforms.functional import InterpolationMode

from fastssl.data import Augmentation, ViewSpec
from fastssl.data.blur import blur_taps

Pipeline = Callable[[bytes], list[Tensor]]
"""From an encoded image to its views, `[3, S, S]` each."""


class PILBlur:
    """Gaussian blur of PIL, which is three box blurs, with a radius drawn anew."""

    def __init__(self, sigma: tuple[float, float]) -> None:
        self.sigma = sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*self.sigma)))


def _common(kit: Any, spec: ViewSpec, blur: Callable[..., Any]) -> list[Any]:
    """What both generations call alike."""
    jitter = kit.ColorJitter(spec.brightness, spec.contrast, spec.saturation, spec.hue)
    return [
        kit.RandomResizedCrop(spec.size, spec.scale, spec.ratio, InterpolationMode(spec.interpolation)),
        kit.RandomApply([jitter], p=spec.jitter),
        kit.RandomGrayscale(spec.grayscale),
        *([kit.RandomApply([blur], p=spec.blur)] if spec.blur else []),
        *([kit.RandomSolarize(128, p=spec.solarize)] if spec.solarize else []),
        kit.RandomHorizontalFlip(spec.flip),
    ]


class PILViews:
    def __init__(self, augment: Augmentation) -> None:
        last = [v1.ToTensor(), v1.Normalize(augment.mean, augment.std)]
        self.groups = [
            (v1.Compose([*_common(v1, spec, PILBlur(spec.blur_sigma)), *last]), spec.count) for spec in augment.views
        ]

    def __call__(self, data: bytes) -> list[Tensor]:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return [transform(image) for transform, count in self.groups for _ in range(count)]


class TensorViews:
    def __init__(self, augment: Augmentation) -> None:
        last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(augment.mean), list(augment.std))]
        self.groups = []
        for spec in augment.views:
            blur = v2.GaussianBlur(max(3, blur_taps(spec.size)), spec.blur_sigma)
            self.groups.append((v2.Compose([*_common(v2, spec, blur), *last]), spec.count))

    def __call__(self, data: bytes) -> list[Tensor]:
        image = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
        return [transform(image) for transform, count in self.groups for _ in range(count)]


PIPELINES: dict[str, Callable[[Augmentation], Pipeline]] = {
    "solo-learn style": PILViews,
    "torchvision v2": TensorViews,
}
"""By the names of their subjects."""


class Images(Dataset):
    """Encoded images through a pipeline."""

    def __init__(self, data: Sequence[bytes], pipeline: Callable[[bytes], list[Tensor]]) -> None:
        self.data, self.pipeline = data, pipeline

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> list[Tensor]:
        return self.pipeline(self.data[index])


def loader(data: Sequence[bytes], pipeline: Pipeline, *, batch_size: int, workers: int, shuffle: bool) -> DataLoader:
    """As everyone's examples build it: whole batches, workers that stay."""
    return DataLoader(
        Images(data, pipeline),
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
