"""Optimizers and schedules, as data."""

from .build import LARS, OptimConfig, build_optimizer
from .schedules import cosine_with_warmup

__all__ = ["LARS", "OptimConfig", "build_optimizer", "cosine_with_warmup"]
