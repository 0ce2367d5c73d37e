"""Foreground masks without labels: classical cues, and a network that learns what they have in common."""

from .learning import LearningSettings
from .make import SaliencySettings, make_masks

__all__ = ["LearningSettings", "SaliencySettings", "make_masks"]
