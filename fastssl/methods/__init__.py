"""One file a method; each reads like its paper."""

from .base import Losses, Method, StepState
from .simclr import SimCLR, SimCLRConfig

__all__ = ["Losses", "Method", "SimCLR", "SimCLRConfig", "StepState"]
