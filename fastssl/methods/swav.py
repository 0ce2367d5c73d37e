"""SwAV: swapping assignments between views (Caron et al., arXiv 2006.09882).

Unit features z are scored against unit prototypes C. Codes q come from the large crops, by Sinkhorn's iterations over
the batch (and a queue of earlier features, where the batch is small), so that all prototypes are used alike (eq. 3).
Every other crop predicts them:

    L = mean over codes q_i of the mean over crops j ≠ i of −Σ_k q_i^(k) log softmax(z_j·C / τ)^(k)     (eq. 2 and 6)

Prototypes are put back to unit length before each step and stay where they are for the first steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fastssl_kernels import Queue, sinkhorn_from_features, swapped_prediction
from fastssl_kernels.gather import group_name, size_and_rank
from torch import Tensor, nn

from ..data.views import Views
from ..errors import UserError
from ..models import mlp_head
from .base import Losses, Method, MethodConfig, StepState, check_above_zero
from .collapse import embedding_std


@dataclass(frozen=True)
class SwAVConfig(MethodConfig):
    """Constants of the method."""

    temperature: float = 0.1
    """τ of the softmax, above 0."""
    epsilon: float = 0.05
    """ε of Sinkhorn's iterations: smaller is harder; the authors advise 0.03 where the loss stays at ln K."""
    iterations: int = 3
    """Sinkhorn's iterations."""
    hidden: int = 2048
    """Width of the projector's hidden layer."""
    out: int = 128
    """Width of the features."""
    prototypes: int = 3000
    """K, at least 2."""
    assign: int = 2
    """Crops that get codes: the first ones of the recipe's first size."""
    freeze_steps: int = 313
    """Steps at the start that leave the prototypes as they are: one epoch of ImageNet with batch 4096."""
    queue: int = 0
    """Earlier features of each large crop, over all processes, that take part in the codes; 0 for none."""
    queue_epoch: float = 15.0
    """Epoch from which the queue is filled; it is used once it is full."""

    def validate(self, counts: tuple[int, ...]) -> None:
        check_above_zero(self, "temperature", "epsilon")
        for name in ("iterations", "hidden", "out"):
            if getattr(self, name) < 1:
                raise UserError(f"--method.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("freeze_steps", "queue", "queue_epoch"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(
                    f"--method.{name.replace('_', '-')} must be at least 0 and finite, got {getattr(self, name)}"
                )
        if self.prototypes < 2:
            raise UserError(f"--method.prototypes must be at least 2, got {self.prototypes}")
        if not 1 <= self.assign <= counts[0] or sum(counts) < 2:
            raise UserError(
                f"--method.assign must be from 1 to the {counts[0]} views of the recipe's first size, beside at least "
                f"one other view, got {self.assign}"
            )

    def validate_batch(self, batch_size: int) -> None:
        if 0 < self.queue < batch_size:
            raise UserError(f"--method.queue {self.queue} must hold a batch of {batch_size} features, or be 0")

    def validate_ranks(self, world: int) -> None:
        if self.queue % world:
            raise UserError(f"--method.queue {self.queue} must be a multiple of the number of processes, {world}")


class SwAV(Method):
    def __init__(self, config: SwAVConfig, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.projector = mlp_head([width, config.hidden, config.out], hidden_bias=True, last_norm=False)
        self.prototypes = nn.Linear(config.out, config.prototypes, bias=False)
        self.queues = nn.ModuleList(
            Queue(config.queue, config.out, dtype=torch.float32, seed=torch.default_generator)
            for _ in range(config.assign if config.queue else 0)
        )
        self._features: Tensor | None = None

    def embed(self, views: Views) -> Tensor:
        """Unit features `[V·B, out]`."""
        return F.normalize(self.projector(torch.cat([self.backbone(group) for group in views.groups])).float())

    def loss_of(self, embedded: Tensor, targets: Tensor | None, views: Views, step: StepState) -> Losses:
        config, prototypes, z = self.config, self.prototypes.weight, embedded
        with torch.no_grad():
            prototypes.copy_(F.normalize(prototypes))
        features = self._features = z.detach().view(views.total, views.batch_size, -1)[: config.assign]
        queue = None
        if self._queued(step, views.batch_size) >= config.queue > 0:
            # Every rank holds all of it and answers for its part: the codes are those of one process.
            world, rank = size_and_rank(group_name(None))
            queue = torch.stack([q.rows.chunk(world)[rank] for q in self.queues])  # type: ignore[operator]
        codes = sinkhorn_from_features(
            features, prototypes, epsilon=config.epsilon, iterations=config.iterations, queue=queue
        )
        crops = tuple(range(config.assign))
        loss = swapped_prediction(z, prototypes, codes, temperature=config.temperature, assign=crops)
        if not step.logged:
            return Losses(loss)
        return Losses(loss, {**code_metrics(codes), "embedding_std": embedding_std(z.detach())})

    def after_backward(self, step: StepState) -> None:
        if step.step < self.config.freeze_steps:
            self.prototypes.weight.grad = None

    def after_step(self, step: StepState) -> None:
        if self.queues and self._features is not None and step.step >= self._queue_start(step):
            for queue, features in zip(self.queues, self._features, strict=True):
                queue.enqueue(features)  # type: ignore[operator]
        self._features = None

    def _queue_start(self, step: StepState) -> int:
        return round(self.config.queue_epoch * step.steps_per_epoch)

    def _queued(self, step: StepState, batch_size: int) -> int:
        """Features enqueued before this step: known without asking the device."""
        return max(0, step.step - self._queue_start(step)) * batch_size * size_and_rank(group_name(None))[0]


def code_metrics(codes: Tensor) -> dict[str, Tensor]:
    """Entropy of a row's code, in nats, and the share of the prototypes in use: e^(entropy of the mean code) / K."""
    mean = codes.mean(tuple(range(codes.ndim - 1)))
    return {
        "code_entropy": -(codes * codes.clamp(min=1e-30).log()).sum(-1).mean(),
        "prototype_use": (-(mean * mean.clamp(min=1e-30).log()).sum()).exp() / len(mean),
    }
