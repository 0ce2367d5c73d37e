"""Sinkhorn's equipartition: soft codes that use every prototype alike."""

from __future__ import annotations

from .op import sinkhorn, sinkhorn_from_features
from .reference import sinkhorn_reference

__all__ = ["sinkhorn", "sinkhorn_from_features", "sinkhorn_reference"]
