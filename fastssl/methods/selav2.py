"""SeLa-v2: self-labelling (Asano et al., arXiv 1911.05371) with SwAV's networks (arXiv 2006.09882, app. D).

DeepCluster-v2 whose labels come from an optimal transport instead of k-means: before an epoch, the remembered
embeddings Z of all images get the codes Q that agree best with their scores while all prototypes are used alike,

    max_Q  Tr(Qᵀ Z Cᵀ) + ε H(Q),      every row of Q sums to 1, every column to N / K                (1911.05371, eq. 6)

by Sinkhorn's iterations, and an image's label is its largest code. Prototypes are unit rows and learn by gradient, as
SwAV's do. The codes of one head exist at a time: N·K floats shared by the ranks, 240 MB each for ImageNet on 64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fastssl_kernels import sinkhorn_from_features
from torch import Tensor, nn

from ..data.views import Views
from ..errors import UserError
from .base import Losses, StepState, check_above_zero
from .deepclusterv2 import DeepClusterV2, DeepClusterV2Config


@dataclass(frozen=True)
class SeLaV2Config(DeepClusterV2Config):
    """Constants of the method."""

    iterations: int = 3
    """Sinkhorn's iterations before an epoch."""
    epsilon: float = 0.05
    """ε of Sinkhorn's iterations: smaller is harder."""
    freeze_steps: int = 313
    """Steps at the start that leave the prototypes as they are: one epoch of ImageNet with batch 4096."""

    def validate(self, counts: tuple[int, ...]) -> None:
        super().validate(counts)
        check_above_zero(self, "epsilon")
        if self.freeze_steps < 0:
            raise UserError(f"--method.freeze-steps must be at least 0, got {self.freeze_steps}")


class SeLaV2(DeepClusterV2):
    config: SeLaV2Config
    prototypes: nn.ParameterList  # type: ignore[assignment]
    """`[K, D]` a head, unit rows."""

    def _make_prototypes(self) -> None:
        config = self.config
        rows = (torch.randn(config.prototypes, config.out) for _ in range(config.heads))
        self.prototypes = nn.ParameterList(F.normalize(row) for row in rows)

    def _cluster(self, head: int, step: StepState) -> None:
        shard = self.memory.shard(head % self.config.assign)
        with torch.autocast(shard.embeddings.device.type, enabled=False):
            codes = sinkhorn_from_features(
                shard.embeddings,
                F.normalize(self.prototypes[head]),
                epsilon=self.config.epsilon,
                iterations=self.config.iterations,
            )
        self.assignments[head] = self.memory.gather(shard, codes.argmax(1))

    def loss_of(self, embedded: Tensor, targets: Tensor | None, views: Views, step: StepState) -> Losses:
        with torch.no_grad():
            for prototypes in self.prototypes:
                prototypes.copy_(F.normalize(prototypes))
        return super().loss_of(embedded, targets, views, step)

    def after_backward(self, step: StepState) -> None:
        if step.step < self.config.freeze_steps:
            for prototypes in self.prototypes:
                prototypes.grad = None
