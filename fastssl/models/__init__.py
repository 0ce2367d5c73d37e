"""Backbones and projection heads."""

from .backbones import BackboneConfig, build_backbone
from .heads import mlp_head
from .resnet import ResNet, resnet

__all__ = ["BackboneConfig", "ResNet", "build_backbone", "mlp_head", "resnet"]
