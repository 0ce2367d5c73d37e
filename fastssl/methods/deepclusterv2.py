"""DeepCluster-v2: clusters of the last epoch are the labels of the next (Caron et al., arXiv 2006.09882, app. D).

DeepCluster (arXiv 1807.05520) with SwAV's head, views and schedule. A memory M keeps every image's last embedding z, of
each of the first crops, in unit length. Before an epoch, head h clusters one crop's memory by spherical k-means from
random rows of it, and its centroids C_h become the prototypes, which no gradient moves; so old and new clusters need
no matching. Every crop of an image then predicts the image's cluster y_h:

    L = mean over heads h of the mean over crops j of −log softmax(z_j·C_h / τ)[y_h]

An image that the memory has not seen yet has no cluster, and does not count. The first epoch's memory is filled by a
look at its views before it begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from fastssl_kernels.gather import all_reduce, group_name, size_and_rank
from torch import Tensor, nn

from ..data.order import permuted
from ..data.views import Views
from ..errors import UserError
from ..models import mlp_head
from .base import DataFacts, Losses, Method, MethodConfig, StepState, check_above_zero
from .collapse import embedding_std
from .kmeans import spherical_kmeans
from .memory import UNASSIGNED, ImageMemory

FIRST_DRAW = 1 << 31
"""The permutations that choose initial centroids are those of epochs from here on, which no training order reaches."""


@dataclass(frozen=True)
class DeepClusterV2Config(MethodConfig):
    """Constants of the method."""

    temperature: float = 0.1
    """τ of the softmax, above 0."""
    hidden: int = 2048
    """Width of the projector's hidden layer."""
    out: int = 128
    """Width of the embedding."""
    prototypes: int = 3000
    """K, clusters of a head: at least 2 and at most the images of an epoch."""
    heads: int = 3
    """Clusterings side by side, from different initial centroids and, in turn, of different crops."""
    assign: int = 2
    """Crops that are remembered: the first ones of the recipe's first size."""
    iterations: int = 10
    """Iterations of k-means before an epoch."""

    def validate(self, counts: tuple[int, ...]) -> None:
        check_above_zero(self, "temperature")
        for name in ("hidden", "out", "heads", "iterations"):
            if getattr(self, name) < 1:
                raise UserError(f"--method.{name} must be at least 1, got {getattr(self, name)}")
        if self.prototypes < 2:
            raise UserError(f"--method.prototypes must be at least 2, got {self.prototypes}")
        if not 1 <= self.assign <= counts[0]:
            raise UserError(
                f"--method.assign must be from 1 to the {counts[0]} views of the recipe's first size, got {self.assign}"
            )

    def validate_data(self, data: DataFacts, shown: int) -> None:
        if self.prototypes > shown:
            raise UserError(
                f"--method.prototypes {self.prototypes} is more than the {shown} images of an epoch, of which each "
                f"cluster needs one: choose at most {shown}"
            )


class DeepClusterV2(Method):
    needs_data = True
    prototypes: Tensor
    """float32 `[H, K, D]`, unit rows: the centroids."""
    assignments: Tensor
    """int64 `[H, N]`: the cluster of every image."""

    def __init__(self, config: DeepClusterV2Config, backbone: nn.Module, width: int, data: DataFacts) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.projector = mlp_head([width, config.hidden, config.out], hidden_bias=True, last_norm=False)
        self.memory = ImageMemory(config.assign, data.images, config.out)
        self.register_buffer("assignments", torch.full((config.heads, data.images), UNASSIGNED))
        self._make_prototypes()
        self._embeddings: tuple[Tensor, Tensor] | None = None

    def _make_prototypes(self) -> None:
        config = self.config
        self.register_buffer("prototypes", torch.zeros(config.heads, config.prototypes, config.out))

    def before_epoch(self, step: StepState, views: Callable[[], Iterator[Views]]) -> None:
        if step.step == 0:
            for batch in views():
                self._remember(batch, self._embed([batch.groups[0]]))
                self._write()
        for head in range(self.config.heads):
            self._cluster(head, step)

    def _cluster(self, head: int, step: StepState) -> None:
        """New prototypes and clusters of one head."""
        crop = head % self.config.assign
        shard = self.memory.shard(crop)
        known = self.memory.seen.nonzero()[:, 0]
        draw = FIRST_DRAW + step.epoch * self.config.heads + head
        if len(known) < self.config.prototypes:
            raise UserError(
                f"--method.prototypes {self.config.prototypes} is more than the {len(known)} images that could be read"
            )
        chosen = permuted(np.arange(self.config.prototypes), len(known), step.seed, draw)
        first = self.memory.embeddings[crop, known[torch.from_numpy(chosen).to(known.device)]]
        centroids, assigned = spherical_kmeans(shard.embeddings, first, self.config.iterations)
        self.prototypes[head] = centroids
        self.assignments[head] = self.memory.gather(shard, assigned)

    def embed(self, views: Views) -> Tensor:
        """Unit rows `[V·B, out]`."""
        return self._embed(views.groups)

    def loss_of(self, embedded: Tensor, targets: Tensor | None, views: Views, step: StepState) -> Losses:
        assert views.ids is not None
        z = embedded
        self._remember(views, z)
        clusters = self.assignments[:, views.ids]
        known = clusters[0] != UNASSIGNED
        # The mean over the known images of all ranks: gradients of ranks are averaged.
        world = size_and_rank(group := group_name(None))[0]
        count = all_reduce(known.sum(), "sum", group).clamp(min=1) * views.total / world
        losses, hits = [], []
        for prototypes, labels in zip(self.prototypes, clusters, strict=True):
            scores = F.linear(z, prototypes).float() / self.config.temperature
            answers = labels.repeat(views.total)
            losses.append(F.cross_entropy(scores, answers, ignore_index=UNASSIGNED, reduction="sum") / count)
            if step.logged:
                hits.append((scores.detach().argmax(1) == answers).sum() / count)
        loss = torch.stack(losses).mean()
        if not step.logged:
            return Losses(loss)
        metrics = {"accuracy": torch.stack(hits).mean(), "prototype_use": self._use()}
        return Losses(loss, {**metrics, "embedding_std": embedding_std(z.detach())})

    def after_step(self, step: StepState) -> None:
        self._write()

    def _embed(self, groups: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
        """Unit rows `[V·B, out]`, view-major."""
        return F.normalize(self.projector(torch.cat([self.backbone(group) for group in groups])).float())

    def _remember(self, views: Views, z: Tensor) -> None:
        assert views.ids is not None
        rows = z.detach().view(-1, views.batch_size, z.shape[1])[: self.config.assign]
        self._embeddings = (views.ids, rows)

    def _write(self) -> None:
        if self._embeddings is not None:
            self.memory.write(*self._embeddings)
            self._embeddings = None

    def _use(self) -> Tensor:
        """Share of the clusters that have an image, over all heads."""
        used = torch.zeros(self.config.heads, self.config.prototypes + 1, device=self.assignments.device)
        places = torch.where(self.assignments == UNASSIGNED, self.config.prototypes, self.assignments)
        return used.scatter_(1, places, 1.0)[:, :-1].mean()
