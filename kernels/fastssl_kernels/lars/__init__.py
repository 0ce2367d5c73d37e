"""Layer-wise adaptive rate scaling."""

from .groups import exclude_from_adaptation
from .op import LARS
from .reference import lars_reference

__all__ = ["LARS", "exclude_from_adaptation", "lars_reference"]
