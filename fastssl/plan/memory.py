"""Memory of a GPU, and the largest batch that fits.

bytes(b) = fixed + b · image
fixed    = state dictionary, gradients, momenta, bf16 copies of weights, and what is reserved
image    = the most that lives at the same time in forward and backward pass, and views twice: the next batch is on
           its way
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..config import Config
from .chips import RESERVED, Chip, Precision
from .losses import momenta
from .network import Networks

GRANULE = 8
"""The largest batch is a multiple of it."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a GPU as a function of the images that pass together."""

    fixed: float
    image: float

    def bytes(self, images: int) -> float:
        return self.fixed + images * self.image

    def fits(self, images: int, chip: Chip) -> bool:
        return self.bytes(images) <= 1e9 * chip.memory

    def largest(self, chip: Chip) -> int:
        """The largest multiple of `GRANULE` that fits; 0 for none."""
        left = 1e9 * chip.memory - self.fixed
        return max(0, math.floor(left / self.image / GRANULE)) * GRANULE


def memory(config: Config, networks: Networks, precision: Precision) -> Memory:
    count = sum(networks.trained)
    fixed = networks.state + 4 * count * (1 + momenta(config)) + networks.saved.fixed + RESERVED
    if precision == "bf16":
        fixed += 2 * (count + sum(networks.averaged))
    return Memory(fixed, networks.peak + 2 * networks.input)


def checkpoint_bytes(config: Config, networks: Networks) -> float:
    """State dictionary and momenta, both float32; what else a checkpoint holds is small."""
    return networks.state + 4 * momenta(config) * sum(networks.trained)
