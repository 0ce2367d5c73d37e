"""Names and signatures that people already type, on top of the functions of this package."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .gather import Group
from .nt_xent import nt_xent


class NTXentLoss(nn.Module):
    """lightly's `NTXentLoss` without its memory bank: called with two views, [B, D] each, it returns a scalar.

    temperature: τ > 0.
    gather_distributed: take the rows of all ranks as negatives. Unlike the original the result then has the gradient
        that data-parallel averaging turns into the exact one.
    """

    def __init__(self, temperature: float = 0.5, gather_distributed: bool = False) -> None:
        super().__init__()
        self.temperature = temperature
        self.gather_distributed = gather_distributed

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        group: Group = None if self.gather_distributed else "local"
        return nt_xent(torch.cat([out0, out1]), temperature=self.temperature, group=group)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, gather_distributed={self.gather_distributed}"
