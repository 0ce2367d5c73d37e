"""The methods by name, and from a recipe's constants to a method with its networks."""

from __future__ import annotations

from torch import nn

from ..models import BackboneConfig, build_backbone, feature_width
from .base import DataFacts, Method, MethodConfig
from .byol import BYOL, BYOLConfig
from .deepclusterv2 import DeepClusterV2, DeepClusterV2Config
from .moco import MoCo, MoCoV1Config, MoCoV2Config
from .nnclr import NNCLR, NNCLRConfig
from .relic import RELIC, RELICConfig, RELICv2Config
from .selav2 import SeLaV2, SeLaV2Config
from .simclr import SimCLR, SimCLRConfig
from .simclrv2 import SimCLRv2, SimCLRv2Config
from .supervised import Supervised, SupervisedConfig
from .swav import SwAV, SwAVConfig

METHODS: dict[str, tuple[type[MethodConfig], type[Method]]] = {
    "simclr": (SimCLRConfig, SimCLR),
    "simclrv2": (SimCLRv2Config, SimCLRv2),
    "mocov1": (MoCoV1Config, MoCo),
    "mocov2": (MoCoV2Config, MoCo),
    "byol": (BYOLConfig, BYOL),
    "swav": (SwAVConfig, SwAV),
    "deepclusterv2": (DeepClusterV2Config, DeepClusterV2),
    "selav2": (SeLaV2Config, SeLaV2),
    "nnclr": (NNCLRConfig, NNCLR),
    "relic": (RELICConfig, RELIC),
    "relicv2": (RELICv2Config, RELIC),
    "supervised": (SupervisedConfig, Supervised),
}
"""Command-line name: the dataclass of its constants, and what is built from (constants, backbone, feature width), and
`DataFacts` where `needs_data`."""


def method_name(config: MethodConfig) -> str:
    return next(name for name, (kind, _) in METHODS.items() if type(config) is kind)


def build_method(
    config: MethodConfig,
    backbone: BackboneConfig,
    data: DataFacts | None = None,
    *,
    network: nn.Module | None = None,
    sizes: tuple[int, ...] = (),
) -> Method:
    """The method around `network`, or around what `backbone` describes, for images of `sizes` pixels.

    `data` is for the methods that need it.
    """
    network = build_backbone(backbone, sizes, network)
    kind = METHODS[method_name(config)][1]
    known = (data or DataFacts(),) if kind.needs_data else ()
    return kind(config, network, feature_width(network), *known)
