"""Backbones and projection heads."""

from .backbones import BackboneConfig, build_backbone, feature_width, module_config
from .heads import mlp_head
from .resnet import ResNet, resnet

__all__ = ["BackboneConfig", "ResNet", "build_backbone", "feature_width", "mlp_head", "module_config", "resnet"]
