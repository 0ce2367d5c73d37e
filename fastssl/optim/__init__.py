"""Optimizers and schedules, as data."""

from .build import OptimConfig, build_optimizer
from .schedules import cosine_with_warmup

__all__ = ["OptimConfig", "build_optimizer", "cosine_with_warmup"]
