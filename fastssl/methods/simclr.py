"""SimCLR: a simple framework for contrastive learning of visual representations (Chen et al., arXiv 2002.05709).

For a batch of N images with two views each, h = f(view), z = g(h) / ‖g(h)‖ and, over all 2N rows,

    ℓ(i, j) = -log  exp(z_i·z_j / τ) / Σ_{k ≠ i} exp(z_i·z_k / τ)                                       (eq. 1)

for the positive j of i. The paper averages ℓ over the 2N rows; the authors' code adds the means of the two directions,
which is twice that (`reduction="sum"`). LARS does not see the factor, except through weight decay and the parameters
that it leaves unadapted. More than two views: the mean over a row's positives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from fastssl_kernels import nt_xent
from torch import Tensor, nn

from ..data.views import Views
from ..errors import UserError
from ..models import mlp_head
from .base import Losses, Method, MethodConfig, StepState, check_above_zero
from .collapse import embedding_std


@dataclass(frozen=True)
class SimCLRConfig(MethodConfig):
    """Constants of the method."""

    temperature: float = 0.1
    """τ of the softmax over similarities, above 0."""
    hidden: int = 0
    """Width of the projector's hidden layers; 0 takes the backbone's feature width."""
    out: int = 128
    """Width of the embedding that the loss compares."""
    layers: int = 2
    """Layers of the projector: 2 in the paper, 3 in SimCLR v2 and in the authors' later code."""
    init_std: float = 0.01
    """Standard deviation of the projector's initial weights; 0 takes torch's default, which suits Adam's steps."""
    reduction: Literal["sum", "mean"] = "sum"
    """Add the two directions, as the authors' code does, or average over all rows, as the paper writes."""

    def validate(self, counts: tuple[int, ...]) -> None:
        check_above_zero(self, "temperature")
        if self.layers < 1 or self.out < 1 or self.hidden < 0:
            raise UserError("--method.layers and --method.out must be at least 1 and --method.hidden at least 0")
        if not 0 <= self.init_std < 10:
            raise UserError(f"--method.init-std must be in [0, 10), got {self.init_std}")
        if sum(counts) < 2:
            raise UserError(f"simclr compares at least two views of an image, the recipe has {sum(counts)}")


class SimCLR(Method):
    def __init__(self, config: SimCLRConfig, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        hidden = config.hidden or width
        self.projector = mlp_head([width, *[hidden] * (config.layers - 1), config.out])
        for layer in self.projector:
            if isinstance(layer, nn.Linear) and config.init_std:
                nn.init.normal_(layer.weight, std=config.init_std)

    def embed(self, views: Views) -> Tensor:
        """`[V·B, out]`, view-major: the backbone once a resolution, the projector once."""
        return self.projector(torch.cat([self.backbone(group) for group in views.groups]))

    def loss_of(self, z: Tensor, targets: Tensor | None, views: Views, step: StepState) -> Losses:
        return self.contrasted(z, views, step)

    def contrasted(self, z: Tensor, views: Views, step: StepState, memory: Tensor | None = None) -> Losses:
        """The loss of `z` `[V·B, out]`, with the rows of `memory` `[K, out]` as further negatives."""
        factor, tau = 2 if self.config.reduction == "sum" else 1, self.config.temperature
        if not step.logged:
            return Losses(factor * nt_xent(z, temperature=tau, views=views.total, queue=memory))
        loss, metrics = nt_xent(z, temperature=tau, views=views.total, queue=memory, return_metrics=True)
        return Losses(
            factor * loss,
            {"accuracy": metrics.accuracy, "entropy": metrics.entropy, "embedding_std": embedding_std(z.detach())},
        )
