"""The training loop and what keeps it safe."""

from .train import Result, pretrain

__all__ = ["Result", "pretrain"]
