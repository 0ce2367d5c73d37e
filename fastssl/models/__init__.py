"""Backbones and projection heads."""

from .backbones import BackboneConfig, build_backbone, feature_width, module_config
from .checkpointing import checkpoint_activations
from .heads import mlp_head
from .resnet import ResNet, resnet
from .statistics import frozen_statistics

__all__ = [
    "BackboneConfig",
    "ResNet",
    "build_backbone",
    "checkpoint_activations",
    "feature_width",
    "frozen_statistics",
    "mlp_head",
    "module_config",
    "resnet",
]
