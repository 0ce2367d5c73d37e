"""RELIC's contrastive likelihood and invariance, over all pairs of views of a step."""

from __future__ import annotations

from .negatives import sample_negatives
from .op import relic
from .reference import RelicMetrics, relic_reference

__all__ = ["RelicMetrics", "relic", "relic_reference", "sample_negatives"]
