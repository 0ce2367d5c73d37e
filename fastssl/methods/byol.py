"""BYOL: bootstrap your own latent (Grill et al., arXiv 2006.07733).

An online network θ predicts the projection that a slow target network ξ gives another view of the same image:

    L = ‖q_θ(z_θ) / ‖q_θ(z_θ)‖ − z'_ξ / ‖z'_ξ‖‖² = 2 − 2·cos(q_θ(z_θ), z'_ξ)                              (eq. 2)

summed over the two exchanges of views, in [0, 8]. After each step ξ ← τ ξ + (1 − τ) θ with τ on a cosine to 1. Each
view passes through the networks by itself, since their distributions differ and batch norm would mix them. Small crops
pass through the online network only; the sum becomes twice the mean over all (view, other large view) pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from fastssl_kernels import byol_loss
from torch import Tensor, nn

from ..data.views import Views
from ..errors import UserError
from ..models import mlp_head
from .base import Losses, Method, MethodConfig, StepState
from .collapse import embedding_std
from .momentum import cosine_momentum, target_copy, target_rows, update_target


@dataclass(frozen=True)
class BYOLConfig(MethodConfig):
    """Constants of the method."""

    hidden: int = 4096
    """Width of the hidden layer of projector and predictor."""
    out: int = 256
    """Width of the projection."""
    projector_norm: bool = False
    """Batch norm after the projector's last layer, as in MoCo v3; the paper has none."""
    momentum: float = 0.996
    """Weight τ of the target's past at the first step; it rises to 1 on a cosine."""

    def validate(self, counts: tuple[int, ...]) -> None:
        if self.hidden < 1 or self.out < 1:
            raise UserError(f"--method.hidden and --method.out must be at least 1, got {self.hidden} and {self.out}")
        if not 0 <= self.momentum <= 1:
            raise UserError(f"--method.momentum must be in [0, 1], got {self.momentum}")
        if counts[0] < 2:
            raise UserError(f"byol needs at least two views in the recipe's first size, got {counts[0]}")


class BYOL(Method):
    def __init__(self, config: BYOLConfig, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.config = config
        bias = {"hidden_bias": True, "last_bias": False}
        self.backbone = backbone
        self.projector = mlp_head([width, config.hidden, config.out], last_norm=config.projector_norm, **bias)
        self.predictor = mlp_head([config.out, config.hidden, config.out], last_norm=False, **bias)
        self.target_backbone = target_copy(self.backbone, fresh=True)
        self.target_projector = target_copy(self.projector, fresh=True)

    def embed(self, views: Views) -> Tensor:
        """Predictions `[V·B, out]`."""
        return torch.cat([self.predictor(self.projector(self.backbone(view))) for view in views.each()])

    def targets(self, views: Views, step: StepState, images: int) -> Tensor:
        """The target network's projections of the large views."""
        return target_rows((self.target_backbone, self.target_projector), views, images)

    def loss_of(self, embedded: Tensor, targets: Tensor | None, views: Views, step: StepState) -> Losses:
        assert targets is not None
        predictions, projections = embedded.split(views.batch_size), targets.split(views.batch_size)
        pairs = [(p, t) for i, p in enumerate(predictions) for j, t in enumerate(projections) if i != j]
        loss = 2 * torch.stack([byol_loss(p, t) for p, t in pairs]).sum() / len(pairs)
        if not step.logged:
            return Losses(loss)
        return Losses(loss, {"cosine": 1 - loss.detach() / 4, "embedding_std": embedding_std(projections[0])})

    def after_step(self, step: StepState) -> None:
        update_target(
            (self.target_backbone, self.target_projector),
            (self.backbone, self.projector),
            cosine_momentum(self.config.momentum, step),
        )
