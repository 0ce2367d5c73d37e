"""GPUs by their vendor's data sheets, and the few constants that no data sheet gives.

Dense rates, without sparsity. Sources: NVIDIA's data sheets of V100 (SXM2), A100 (SXM), H100 (SXM), H200 (SXM) and HGX
B200, and those of the machines they come in (DGX-1, DGX A100, DGX H100, DGX B200) for the network: four ports of
100 Gbit/s, eight of 200 and eight of 400. Links count one direction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..errors import UserError

Precision = Literal["bf16", "fp32"]

EFFICIENCY = 0.67
"""Share of the roofline that a training step reaches: fitted on one published row (`published.CALIBRATION`)."""
LAUNCH = 4e-6
"""Least seconds of an operation on a GPU, assumed: small batches meet it."""
HOP = 5e-6
"""Seconds of a hop of a collective call inside a machine, assumed; twice that between machines."""
RESERVED = 2e9
"""Bytes of a GPU that the driver, the libraries' workspaces and NCCL take, assumed."""


@dataclass(frozen=True)
class Chip:
    """One GPU and its links."""

    name: str
    half: float
    """TFLOP/s of 16-bit matrix products with 32-bit sums."""
    single: float
    """TFLOP/s of products of float32 numbers: TF32 where the chip has it."""
    bandwidth: float
    """GB/s of its memory."""
    memory: float
    """GB."""
    intra: float
    """GB/s a GPU to the other GPUs of its machine."""
    inter: float
    """GB/s a machine to other machines."""
    tf32: bool = True
    """Whether tensor cores multiply float32 numbers."""

    def rate(self, precision: Precision) -> float:
        """FLOP/s of matrix products."""
        return 1e12 * (self.half if precision == "bf16" else self.single)


_V100 = Chip("v100-32", half=125, single=15.7, bandwidth=900, memory=32, intra=150, inter=50, tf32=False)
_A100 = Chip("a100-80", half=312, single=156, bandwidth=2039, memory=80, intra=300, inter=200)
_H100 = Chip("h100", half=989, single=494, bandwidth=3350, memory=80, intra=450, inter=400)

CHIPS = {
    chip.name: chip
    for chip in (
        replace(_V100, name="v100-16", memory=16),
        _V100,
        replace(_A100, name="a100-40", bandwidth=1555, memory=40),
        _A100,
        _H100,
        replace(_H100, name="h200", bandwidth=4800, memory=141),
        Chip("b200", half=2250, single=1125, bandwidth=7700, memory=180, intra=900, inter=400),
    )
}


def chip(name: str) -> Chip:
    """Raises `UserError` for a GPU whose data sheet is not here."""
    if name not in CHIPS:
        raise UserError(f"--gpu {name!r} is not known: choose one of {', '.join(CHIPS)}")
    return CHIPS[name]
