"""Seconds of work on a chip.

roofline    Σ over operations of  max(FLOPs / tensor rate, bytes / bandwidth)
predicted   Σ over operations of  max(roofline / efficiency, launch)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .chips import LAUNCH, Chip, Precision
from .walk import TRANSPOSE, Work


@dataclass(frozen=True)
class Machine:
    """A chip, and how it is used."""

    chip: Chip
    precision: Precision = "bf16"
    efficiency: float = 1.0
    """Share of the roofline that is reached, in (0, 1]."""
    channels_last: bool = True

    @property
    def transposes(self) -> bool:
        """Whether convolutions turn their images: float32 products use tensor cores where the chip has TF32."""
        return not self.channels_last and (self.precision == "bf16" or self.chip.tf32)


def roofline(work: Iterable[Work], images: float, machine: Machine) -> float:
    """Seconds of `images` images at best."""
    return sum(_best(w, images, machine) for w in work)


def seconds(work: Iterable[Work], images: float, machine: Machine) -> float:
    """Predicted seconds of `images` images. An operation takes at least its launch."""
    best = ((w, _best(w, images, machine)) for w in work)
    return sum(max(b / machine.efficiency, 0.0 if w.name == TRANSPOSE else LAUNCH) for w, b in best)


def _best(work: Work, images: float, machine: Machine) -> float:
    if work.name == TRANSPOSE and not machine.transposes:
        return 0.0
    products = work.flops * images / machine.chip.rate(machine.precision)
    return max(products, work.bytes(images) / (1e9 * machine.chip.bandwidth))
