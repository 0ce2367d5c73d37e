"""The backbone of a run, described by data."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..errors import UserError
from .resnet import DEPTHS, Bottleneck, ResNet, Stem, resnet


@dataclass(frozen=True)
class BackboneConfig:
    """Which network turns an image into features."""

    name: str = "resnet50"
    """resnet10, 18, 34, 50, 101, 152 or 200."""
    stem: Stem = "imagenet"
    """7 × 7 with max-pool, or 3 × 3 for small images (with stride 1 or 2)."""
    width: float = 1.0
    """Multiplier of every channel count."""
    sk_ratio: float = 0.0
    """Selective kernels with this reduction (0.0625 in SimCLR v2), for networks of bottlenecks; 0 for none."""
    zero_init_residual: bool = True
    """Start each block's last batch-norm scale at zero."""

    def validate(self) -> None:
        if self.name not in DEPTHS:
            raise UserError(f"--backbone.name must be one of {', '.join(DEPTHS)}, got {self.name!r}")
        if not 0.125 <= self.width <= 16:
            raise UserError(f"--backbone.width must be between 0.125 and 16, got {self.width}")
        if not 0 <= self.sk_ratio <= 1:
            raise UserError(f"--backbone.sk-ratio must be between 0 and 1, got {self.sk_ratio}")
        if self.sk_ratio and DEPTHS[self.name][0] is not Bottleneck:
            raise UserError(f"--backbone.sk-ratio needs a network of bottlenecks, resnet50 or deeper, got {self.name}")


def build_backbone(config: BackboneConfig) -> ResNet:
    config.validate()
    return resnet(
        config.name,
        stem=config.stem,
        width=config.width,
        zero_init_residual=config.zero_init_residual,
        sk_ratio=config.sk_ratio,
    )


def parameter_count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
