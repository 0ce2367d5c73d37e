"""BYOL's normalised regression loss."""

from .op import byol_loss
from .reference import byol_reference

__all__ = ["byol_loss", "byol_reference"]
