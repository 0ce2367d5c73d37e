"""The methods by name, and from a recipe's constants to a method with its networks."""

from __future__ import annotations

from collections.abc import Callable

from ..models import BackboneConfig, build_backbone
from .base import Method, MethodConfig
from .byol import BYOL, BYOLConfig
from .moco import MoCo, MoCoV1Config, MoCoV2Config
from .nnclr import NNCLR, NNCLRConfig
from .relic import RELIC, RELICConfig, RELICv2Config
from .simclr import SimCLR, SimCLRConfig, SimCLRv2Config
from .swav import SwAV, SwAVConfig

METHODS: dict[str, tuple[type[MethodConfig], Callable[..., Method]]] = {
    "simclr": (SimCLRConfig, SimCLR),
    "simclrv2": (SimCLRv2Config, SimCLR),
    "mocov1": (MoCoV1Config, MoCo),
    "mocov2": (MoCoV2Config, MoCo),
    "byol": (BYOLConfig, BYOL),
    "swav": (SwAVConfig, SwAV),
    "nnclr": (NNCLRConfig, NNCLR),
    "relic": (RELICConfig, RELIC),
    "relicv2": (RELICv2Config, RELIC),
}
"""Command-line name: the dataclass of its constants, and what is built from (constants, backbone, feature width)."""


def method_name(config: MethodConfig) -> str:
    return next(name for name, (kind, _) in METHODS.items() if type(config) is kind)


def build_method(config: MethodConfig, backbone: BackboneConfig) -> Method:
    network = build_backbone(backbone)
    return METHODS[method_name(config)][1](config, network, network.feature_dim)
