"""Residual networks with torchvision's parameter names, so that weights travel without conversion.

He et al., arXiv 1512.03385; the bottleneck keeps its stride in the 3 × 3 convolution ("v1.5"), as every
self-supervised reference does. Without a classifier: the forward pass returns the pooled features `[B, D]`. With
selective kernels the stem is three 3 × 3 convolutions and shortcuts pool before they project (ResNet-D, arXiv
1812.01187), as in SimCLR v2.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from .conv import Conv2d
from .selective import SelectiveKernel

Stem = Literal["imagenet", "imagenet-d", "cifar", "cifar-s2"]


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(channels_in, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = Conv2d(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(channels_in, channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + identity)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn2


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int, sk_ratio: float = 0.0) -> None:
        super().__init__()
        self.conv1 = Conv2d(channels_in, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        if sk_ratio:  # normalised within, and not negative: the ReLU that follows changes nothing
            self.conv2: nn.Module = SelectiveKernel(channels, channels, stride, sk_ratio)
            self.bn2: nn.Module = nn.Identity()
        else:
            self.conv2 = Conv2d(channels, channels, 3, stride)
            self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = Conv2d(channels, channels * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(channels_in, channels * self.expansion, stride, pooled=sk_ratio > 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + identity)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn3


def _shortcut(channels_in: int, channels_out: int, stride: int, *, pooled: bool = False) -> nn.Sequential | None:
    if stride == 1 and channels_in == channels_out:
        return None
    if pooled:
        pool = nn.AvgPool2d(2, 2, ceil_mode=True) if stride > 1 else SamePool()
        return nn.Sequential(pool, Conv2d(channels_in, channels_out, 1), nn.BatchNorm2d(channels_out))
    return nn.Sequential(Conv2d(channels_in, channels_out, 1, stride), nn.BatchNorm2d(channels_out))


class SamePool(nn.Module):
    """2 × 2 averages at stride 1; those of the last row and column are of the pixels that there are. SimCLR v2's code
    pools the shortcut of the first stage too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), 2, 1)


def _deep_stem(width: int) -> nn.Sequential:
    half = width // 2
    parts: list[nn.Module] = []
    for channels_in, stride in ((3, 2), (half, 1)):
        parts += [Conv2d(channels_in, half, 3, stride), nn.BatchNorm2d(half), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts, Conv2d(half, width, 3))


class ResNet(nn.Module):
    """Images `[B, 3, H, W]` to pooled features `[B, feature_dim]`.

    `width` multiplies every channel count (64 at the stem). Stems: "imagenet" is 7 × 7 / 2 and a max-pool / 2;
    "imagenet-d" has three 3 × 3 instead of the 7 × 7 (ResNet-C's and -D's);
    "cifar" is 3 × 3 without a pool (SimCLR, app. B.9); "cifar-s2" the same with stride 2, four times cheaper.
    `sk_ratio` above 0 gives bottlenecks selective kernels (0.0625 in SimCLR v2), a deep stem and pooled shortcuts.
    `zero_init_residual` starts the last scale of every block at zero (Goyal et al., arXiv 1706.02677).
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        blocks: tuple[int, int, int, int],
        *,
        stem: Stem = "imagenet",
        width: float = 1.0,
        zero_init_residual: bool = True,
        sk_ratio: float = 0.0,
    ) -> None:
        super().__init__()
        base = max(8, round(64 * width))
        kernel, stride = {"imagenet": (7, 2), "imagenet-d": (3, 2), "cifar": (3, 1), "cifar-s2": (3, 2)}[stem]
        deep = stem == "imagenet-d" or (sk_ratio > 0 and stem == "imagenet")
        self.conv1: nn.Module = _deep_stem(base) if deep else Conv2d(3, base, kernel, stride)
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem.startswith("imagenet") else nn.Identity()
        channels = base
        options = {"sk_ratio": sk_ratio} if sk_ratio else {}
        for stage, count in enumerate(blocks):
            stage_width = base * 2**stage
            layers: list[nn.Module] = []
            for index in range(count):
                layers.append(block(channels, stage_width, 2 if stage and not index else 1, **options))
                channels = stage_width * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.feature_dim = channels
        self.zero_init_residual = zero_init_residual
        self.initialise()

    def initialise(self) -> None:
        """He's initial weights (arXiv 1502.01852, fan out)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif self.zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_(module.last_norm.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return x.mean(dim=(2, 3))


DEPTHS: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]] = {
    "resnet10": (BasicBlock, (1, 1, 1, 1)),
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
    "resnet200": (Bottleneck, (3, 24, 36, 3)),
}


def resnet(name: str, **options) -> ResNet:
    """`resnet("resnet50", stem="imagenet", width=1.0)`; names are the keys of `DEPTHS`."""
    block, blocks = DEPTHS[name]
    return ResNet(block, blocks, **options)
