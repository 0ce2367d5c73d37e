"""Backbones by name: ours, torchvision's, timm's; or any module."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..errors import UserError
from .foreign import MODULE, build_foreign, close_names, feature_width, measure
from .resnet import DEPTHS, Bottleneck, ResNet, Stem, resnet

LIBRARIES = ("torchvision", "timm")


@dataclass(frozen=True)
class BackboneConfig:
    """Which network turns an image into features."""

    name: str = "resnet50"
    """resnet10, 18, 34, 50, 101, 152 or 200, or a network of those libraries as torchvision:NAME or timm:NAME."""
    stem: Stem = "imagenet"
    """7 × 7 with max-pool, three 3 × 3 with max-pool (ResNet-D's), or 3 × 3 for small images (with stride 1 or 2). Our
    networks only, as the next three."""
    width: float = 1.0
    """Multiplier of every channel count."""
    sk_ratio: float = 0.0
    """Selective kernels with this reduction (0.0625 in SimCLR v2), for networks of bottlenecks; 0 for none."""
    zero_init_residual: bool = True
    """Start each block's last batch-norm scale at zero."""
    image_size: int = 0
    """Side in pixels that a network of torchvision or timm is built for, where it is built for one (vision
    transformers, mixers); 0 takes the library's."""

    def validate(self) -> None:
        library, _, model = self.name.partition(":")
        if self.image_size < 0:
            raise UserError(f"--backbone.image-size must be at least 0, got {self.image_size}")
        if model and library in (*LIBRARIES, MODULE):
            self._validate_foreign()
            return
        if self.name not in DEPTHS:
            raise UserError(
                f"--backbone.name must be one of {', '.join(DEPTHS)}, or torchvision:NAME or timm:NAME, "
                f"got {self.name!r}{close_names(self.name, DEPTHS)}"
            )
        if self.image_size:
            raise UserError(
                f"--backbone.image-size is for torchvision's and timm's networks, {self.name} takes any size"
            )
        if not 0.125 <= self.width <= 16:
            raise UserError(f"--backbone.width must be between 0.125 and 16, got {self.width}")
        if not 0 <= self.sk_ratio <= 1:
            raise UserError(f"--backbone.sk-ratio must be between 0 and 1, got {self.sk_ratio}")
        if self.sk_ratio and DEPTHS[self.name][0] is not Bottleneck:
            raise UserError(f"--backbone.sk-ratio needs a network of bottlenecks, resnet50 or deeper, got {self.name}")

    def _validate_foreign(self) -> None:
        ours = {"stem": "imagenet", "width": 1.0, "sk_ratio": 0.0}
        for field, neutral in ours.items():
            if getattr(self, field) != neutral:
                option = f"--backbone.{field.replace('_', '-')}"
                raise UserError(
                    f"{option} {getattr(self, field)} changes our own networks only: with --backbone.name {self.name} "
                    f"pass {option} {neutral}"
                )


def module_config(module: nn.Module) -> BackboneConfig:
    """What stands in config.yaml for a module that Python code passed: its class, which cannot be built from there."""
    return BackboneConfig(name=f"{MODULE}:{type(module).__name__}")


def build_backbone(
    config: BackboneConfig, sizes: tuple[int, ...] = (), module: nn.Module | None = None
) -> ResNet | nn.Module:
    """The network that maps images `[B, 3, S, S]` to features `[B, D]`; D is its `feature_width`.

    Args:
        sizes: sides of the images it will see, which networks that are not ours are tried on.
        module: used instead of what `config` names.

    Raises:
        UserError: an unknown name, a missing library, or a network that does not turn such images into vectors.
    """
    config.validate()
    if module is not None:
        return measure(module, "backbone", sizes or (224,))
    library, _, model = config.name.partition(":")
    if library == MODULE:
        raise UserError(
            f"the backbone {model} was a module of a Python program: pass it again, "
            "fastssl.pretrain(resume=..., backbone=module), or evaluate it from Python"
        )
    if model:
        return build_foreign(library, model, config.image_size, sizes)
    return resnet(
        config.name,
        stem=config.stem,
        width=config.width,
        zero_init_residual=config.zero_init_residual,
        sk_ratio=config.sk_ratio,
    )


def parameter_count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


__all__ = ["BackboneConfig", "build_backbone", "feature_width", "module_config", "parameter_count"]
