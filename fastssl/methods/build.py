"""From a recipe's constants to a method with its networks."""

from __future__ import annotations

from ..models import BackboneConfig, build_backbone
from .base import Method
from .simclr import SimCLR, SimCLRConfig


def build_method(config: SimCLRConfig, backbone: BackboneConfig) -> Method:
    return SimCLR(config, build_backbone(backbone))
