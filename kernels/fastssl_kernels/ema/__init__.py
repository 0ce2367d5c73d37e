"""Exponential moving average of parameters."""

from .op import ema_update_
from .reference import ema_reference

__all__ = ["ema_reference", "ema_update_"]
