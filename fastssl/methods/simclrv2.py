"""SimCLR v2: big self-supervised models are strong semi-supervised learners (Chen et al., arXiv 2006.10029).

Version 1's loss under wider networks with selective kernels and a projector of three layers (section 2). Its third
change is a memory of negatives after MoCo: a slow copy of the networks, θ' ← m θ' + (1 − m) θ after every step, whose
past outputs m_k join the other views in every denominator,

    ℓ(i, j) = -log  exp(z_i·z_j / τ) / (Σ_{k ≠ i} exp(z_i·z_k / τ) + Σ_k exp(z_i·m_k / τ)),

and get no gradient. The memory takes the slow copy's output of every image's second view in after the loss has used it.
That it is one view, and the copy's batch norm the batch's own, is MoCo's way and our choice: the paper does not say.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fastssl_kernels import Queue
from torch import Tensor, nn

from ..data.views import Views
from ..errors import UserError
from .base import Losses, StepState
from .momentum import target_copy, update_target
from .simclr import SimCLR, SimCLRConfig


@dataclass(frozen=True)
class SimCLRv2Config(SimCLRConfig):
    """Constants of the method."""

    layers: int = 3
    """Layers of the projector; fine-tuning starts from its first."""
    memory: int = 0
    """Rows of the memory of negatives, at least a batch; 0 for none."""
    memory_momentum: float = 0.999
    """Weight m of the past in the networks that fill the memory."""

    def validate(self, counts: tuple[int, ...]) -> None:
        super().validate(counts)
        if self.memory < 0:
            raise UserError(f"--method.memory must be at least 0, got {self.memory}")
        if not 0 <= self.memory_momentum <= 1:
            raise UserError(f"--method.memory-momentum must be in [0, 1], got {self.memory_momentum}")

    def validate_batch(self, batch_size: int) -> None:
        if 0 < self.memory < batch_size:
            raise UserError(f"--method.memory {self.memory} must hold a batch of {batch_size} images: raise it, or 0")


class SimCLRv2(SimCLR):
    def __init__(self, config: SimCLRv2Config, backbone: nn.Module, width: int) -> None:
        super().__init__(config, backbone, width)
        self.memory_config = config
        self.memory: Queue | None = None
        self._keys: Tensor | None = None
        if config.memory:
            self.key_backbone = target_copy(self.backbone, fresh=False)
            self.key_projector = target_copy(self.projector, fresh=False)
            self.memory = Queue(config.memory, config.out, dtype=torch.float32, seed=torch.default_generator)

    def targets(self, views: Views, step: StepState, images: int) -> Tensor | None:
        """The memory's next rows `[B, out]`."""
        if self.memory is None:
            return None
        features = [self.key_backbone(part) for part in views.each()[1].split(images)]
        return F.normalize(torch.cat([self.key_projector(part) for part in features]).float())

    def loss_of(self, z: Tensor, targets: Tensor | None, views: Views, step: StepState) -> Losses:
        self._keys = targets
        return self.contrasted(z, views, step, None if self.memory is None else self.memory.rows)

    def after_step(self, step: StepState) -> None:
        if self.memory is None:
            return
        momentum = self.memory_config.memory_momentum
        update_target((self.key_backbone, self.key_projector), (self.backbone, self.projector), momentum)
        if self._keys is not None:
            self.memory.enqueue(self._keys)
            self._keys = None
