"""What a sweep works on: the tensors of one parameter and the options of its group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass
class Entry:
    """One parameter that takes part in a step.

    `weight`, `gradient` and `velocity` are dense, share shape, dtype and memory order, and so do `average` (the target
    of the moving average) and `copy` (of any floating dtype) where they are given. `group` is the parameter group.
    """

    weight: Tensor
    gradient: Tensor
    velocity: Tensor
    group: dict[str, Any]
    average: Tensor | None = None
    copy: Tensor | None = None
