"""RELIC and RELICv2: invariant causal mechanisms (Mitrovic et al., arXiv 2010.07922; Tomasev et al., arXiv 2201.05119).

An online view is contrasted with a target network's view of the same image among other images, and the distribution
over the images must not depend on the augmentation:

    L = mean over pairs (i, j) of  −log p(x; o_i, t_j) + α · KL(p(o_i, t_j) ‖ sg p(o_j, t_i)),  p ∝ exp(cos / τ)

RELIC pairs two different views and takes all other images as negatives. RELICv2 pairs every large or small online crop
with every large target crop, the same one included, divides by (L + S)·L, and samples few negatives once a batch. Small
crops pass through the online network only. After each step the target follows, as in BYOL.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from fastssl_kernels import relic, sample_negatives
from fastssl_kernels.gather import group_name, size_and_rank
from torch import Tensor, nn

from ..data.views import Views
from ..errors import UserError
from ..models import mlp_head
from .base import Losses, Method, MethodConfig, StepState, check_above_zero
from .collapse import embedding_std
from .momentum import cosine_momentum, target_copy, target_rows, update_target


@dataclass(frozen=True)
class RELICv2Config(MethodConfig):
    """Constants of the method."""

    temperature: float = 0.2
    """τ of the softmax, above 0."""
    alpha: float = 0.3
    """Weight α of the invariance, at least 0."""
    negatives: int = 10
    """Images sampled once a batch as negatives; 0 takes all other images."""
    self_pairs: bool = True
    """Pair a large crop with itself too, online against target."""
    hidden: int = 4096
    """Width of the hidden layer of projector and predictor."""
    out: int = 256
    """Width of the embedding."""
    predictor: bool = True
    """A second perceptron behind the online projector."""
    momentum: float = 0.996
    """Weight of the target's past at the first step; it rises to 1 on a cosine."""
    stop_gradient: Literal["second", "first", "entropy"] = "second"
    """What of KL(p ‖ q) gets no gradient: q, p, or only the entropy of p, so that both are pulled together."""

    def validate(self, counts: tuple[int, ...]) -> None:
        check_above_zero(self, "temperature")
        if not 0 <= self.alpha < math.inf or self.negatives < 0:
            raise UserError(
                "--method.alpha and --method.negatives must be at least 0 and finite, got "
                f"{self.alpha} and {self.negatives}"
            )
        if self.hidden < 1 or self.out < 1:
            raise UserError(f"--method.hidden and --method.out must be at least 1, got {self.hidden} and {self.out}")
        if not 0 <= self.momentum <= 1:
            raise UserError(f"--method.momentum must be in [0, 1], got {self.momentum}")
        if counts[0] < 2:
            raise UserError(f"relic needs at least two views in the recipe's first size, got {counts[0]}")

    def validate_batch(self, batch_size: int) -> None:
        if self.negatives >= batch_size:
            raise UserError(
                f"--method.negatives {self.negatives} must be fewer than the {batch_size} images of a batch"
            )


@dataclass(frozen=True)
class RELICConfig(RELICv2Config):
    """Constants of the method."""

    temperature: float = 0.1
    """τ of the softmax, above 0."""
    alpha: float = 1.0
    """Weight α of the invariance, at least 0."""
    negatives: int = 0
    """Images sampled once a batch as negatives; 0 takes all other images."""
    self_pairs: bool = False
    """Pair a large crop with itself too, online against target."""
    predictor: bool = False
    """A second perceptron behind the online projector."""


class RELIC(Method):
    def __init__(self, config: RELICv2Config, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.config = config
        head = {"hidden_bias": True, "last_norm": False, "last_bias": False}
        self.backbone = backbone
        self.projector = mlp_head([width, config.hidden, config.out], **head)
        self.predictor = (
            mlp_head([config.out, config.hidden, config.out], **head) if config.predictor else nn.Identity()
        )
        self.target_backbone = target_copy(self.backbone, fresh=False)
        self.target_projector = target_copy(self.projector, fresh=False)

    def embed(self, views: Views) -> Tensor:
        """The online network's `[V·B, out]`."""
        return torch.cat([self.predictor(self.projector(self.backbone(view))) for view in views.each()])

    def targets(self, views: Views, step: StepState, images: int) -> Tensor:
        """The target network's `[L·B, out]` of the large views."""
        return target_rows((self.target_backbone, self.target_projector), views, images)

    def loss_of(self, embedded: Tensor, targets: Tensor | None, views: Views, step: StepState) -> Losses:
        assert targets is not None
        config, online, large = self.config, embedded, views.counts[0]
        negatives = None
        if config.negatives:
            images = views.batch_size * size_and_rank(group_name(None))[0]
            negatives = sample_negatives(images, config.negatives, seed=step.seed, step=step.step, device=online.device)
        compared = partial(
            relic,
            online,
            targets,
            views=(large, views.total - large),
            temperature=config.temperature,
            alpha=config.alpha,
            negatives=negatives,
            self_pairs=config.self_pairs,
            stop_gradient=config.stop_gradient,
        )
        if not step.logged:
            return Losses(compared())
        loss, metrics = compared(return_metrics=True)
        return Losses(loss, {**metrics._asdict(), "embedding_std": embedding_std(targets)})

    def after_step(self, step: StepState) -> None:
        update_target(
            (self.target_backbone, self.target_projector),
            (self.backbone, self.projector),
            cosine_momentum(self.config.momentum, step),
        )
