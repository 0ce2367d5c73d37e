"""SwAV's loss: predict the codes of one crop from every other."""

from __future__ import annotations

from .op import swapped_prediction
from .reference import swapped_prediction_reference

__all__ = ["swapped_prediction", "swapped_prediction_reference"]
