"""NNCLR: with a little help from my friends (Dwibedi et al., arXiv 2104.14548).

SimCLR whose positive is not the other view but its nearest neighbour among past embeddings Q:

    L_i = −log  exp(NN(z_i, Q)·p_i⁺ / τ) / Σ_k exp(NN(z_i, Q)·p_k⁺ / τ)                                       (eq. 3)

p = prediction of the other view; negatives are the other images' predictions, the gradient flows to predictions only.
The loss is the mean over the exchanges of views (½ + ½). The queue takes in the first view's embeddings after it was
searched, or every row would find itself. Small crops are predicted only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from fastssl_kernels import Queue, info_nce, nearest_neighbor
from torch import Tensor, nn

from ..data.views import Views
from ..errors import UserError
from ..models import mlp_head
from .base import Losses, Method, MethodConfig, StepState, check_above_zero
from .collapse import embedding_std


@dataclass(frozen=True)
class NNCLRConfig(MethodConfig):
    """Constants of the method."""

    temperature: float = 0.1
    """τ of the softmax, above 0."""
    hidden: int = 2048
    """Width of the projector's two hidden layers."""
    out: int = 256
    """Width of the embedding."""
    predictor_hidden: int = 4096
    """Width of the predictor's hidden layer."""
    queue: int = 98_304
    """Embeddings in the queue; at least a batch."""

    def validate(self, counts: tuple[int, ...]) -> None:
        check_above_zero(self, "temperature")
        for name in ("hidden", "out", "predictor_hidden", "queue"):
            if getattr(self, name) < 1:
                raise UserError(f"--method.{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if counts[0] < 2:
            raise UserError(f"nnclr needs at least two views in the recipe's first size, got {counts[0]}")

    def validate_batch(self, batch_size: int) -> None:
        if batch_size > self.queue:
            raise UserError(f"--method.queue {self.queue} must hold a batch of {batch_size} embeddings: raise it")


class NNCLR(Method):
    def __init__(self, config: NNCLRConfig, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.projector = mlp_head([width, config.hidden, config.hidden, config.out], last_norm_bias=True)
        self.predictor = mlp_head([config.out, config.predictor_hidden, config.out], last_norm=False)
        self.queue = Queue(config.queue, config.out, seed=torch.default_generator)
        self._embeddings: Tensor | None = None

    def embed(self, views: Views) -> Tensor:
        """Predictions, then the embeddings that they are made of: `[2·V·B, out]`."""
        z = self.projector(torch.cat([self.backbone(group) for group in views.groups]))
        return torch.cat([self.predictor(z), z])

    def loss_of(self, embedded: Tensor, targets: Tensor | None, views: Views, step: StepState) -> Losses:
        predictions, z = (rows.chunk(views.total) for rows in embedded.chunk(2))
        embeddings = [rows.detach() for rows in z[: views.counts[0]]]
        neighbors = [nearest_neighbor(embedding, self.queue) for embedding in embeddings]
        pairs = [(found.rows, p) for i, found in enumerate(neighbors) for j, p in enumerate(predictions) if i != j]
        self._embeddings = embeddings[0]
        tau = self.config.temperature
        losses = [info_nce(*pair, temperature=tau) for pair in (pairs[1:] if step.logged else pairs)]
        if not step.logged:
            return Losses(torch.stack(losses).mean())
        loss, metrics = info_nce(*pairs[0], temperature=tau, return_metrics=True)
        return Losses(
            torch.stack([loss, *losses]).mean(),
            {
                "accuracy": metrics.accuracy,
                "entropy": metrics.entropy,
                "neighbor_cosine": neighbors[0].similarity.mean(),
                "embedding_std": embedding_std(embeddings[0]),
            },
        )

    def after_step(self, step: StepState) -> None:
        if self._embeddings is not None:
            self.queue.enqueue(self._embeddings)
            self._embeddings = None
