"""MoCo v1 and v2: momentum contrast (He et al., arXiv 1911.05722; Chen et al., arXiv 2003.04297).

A query q of one view meets the key k₊ of the other, made by a slow copy of the network, among a queue of past keys:

    L = −log  exp(q·k₊/τ) / (exp(q·k₊/τ) + Σ_queue exp(q·k/τ))                                (1911.05722, eq. 1)

The queue takes the keys in after the loss has used it. Batch norm would let a query find its key by the statistics
they share, so it runs in groups (one a GPU, in the authors' code), and the keys are shuffled over the groups
("shuffling BN", section 3.3). Small crops are further queries; the loss is the mean over all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fastssl_kernels import Queue, info_nce, sample_negatives
from fastssl_kernels.gather import gather_rows, group_name, size_and_rank
from torch import Tensor, nn

from ..data.views import Views
from ..errors import UserError
from ..models import mlp_head
from .base import Losses, Method, MethodConfig, StepState, check_above_zero
from .collapse import embedding_std
from .momentum import target_copy, update_target


@dataclass(frozen=True)
class MoCoV2Config(MethodConfig):
    """Constants of the method."""

    temperature: float = 0.2
    """τ of the softmax, above 0."""
    layers: int = 2
    """Layers of the projector, without batch norm: 1 in version 1, 2 in version 2."""
    out: int = 128
    """Width of the embedding."""
    queue: int = 65_536
    """Keys in the queue; at least a batch."""
    momentum: float = 0.999
    """Weight of the key network's past."""
    head_norm: bool = False
    """Batch norm after every layer of the projector, as in version 3; none in versions 1 and 2. One group only."""
    norm_groups: int = 8
    """Groups of the global batch with batch-norm statistics of their own; more than 1 shuffles the keys over them."""

    def validate(self, counts: tuple[int, ...]) -> None:
        check_above_zero(self, "temperature")
        if min(self.layers, self.out, self.queue, self.norm_groups) < 1:
            raise UserError("--method.layers, --method.out, --method.queue and --method.norm-groups must be at least 1")
        if not 0 <= self.momentum <= 1:
            raise UserError(f"--method.momentum must be in [0, 1], got {self.momentum}")
        if self.head_norm and self.norm_groups > 1:
            raise UserError(
                f"--method.head-norm takes its statistics from the whole batch, so --method.norm-groups must be 1, got "
                f"{self.norm_groups}"
            )
        if counts[0] < 2:
            raise UserError(f"moco needs at least two views in the recipe's first size, got {counts[0]}")

    def validate_batch(self, batch_size: int) -> None:
        if batch_size > self.queue:
            raise UserError(f"--method.queue {self.queue} must hold a batch of {batch_size} keys: raise it")
        if batch_size % self.norm_groups or batch_size // self.norm_groups < 2:
            raise UserError(
                f"--train.batch-size {batch_size} must be a multiple of --method.norm-groups {self.norm_groups}, "
                "with two images a group or more"
            )

    def validate_ranks(self, world: int) -> None:
        if self.norm_groups > 1 and self.norm_groups % world:
            raise UserError(
                f"--method.norm-groups {self.norm_groups} must be a multiple of the number of processes, {world}, or 1"
            )

    def validate_micro_batch(self, images: int, batch_size: int) -> None:
        group = batch_size // self.norm_groups
        if self.norm_groups > 1 and images % group:
            raise UserError(
                f"--train.micro-batch {images} must hold whole groups of batch norm: choose a multiple of {group}, "
                f"which is --train.batch-size {batch_size} / --method.norm-groups {self.norm_groups}"
            )


@dataclass(frozen=True)
class MoCoV1Config(MoCoV2Config):
    """Constants of the method: a linear projector and a lower temperature."""

    temperature: float = 0.07
    """τ of the softmax, above 0."""
    layers: int = 1
    """Layers of the projector, without batch norm: 1 in version 1, 2 in version 2."""


class MoCo(Method):
    def __init__(self, config: MoCoV2Config, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        widths = [width] * config.layers + [config.out]
        norm = config.head_norm
        self.projector = mlp_head(widths, hidden_bias=not norm, hidden_norm=norm, last_norm=norm)
        self.key_backbone = target_copy(self.backbone, fresh=False)
        self.key_projector = target_copy(self.projector, fresh=False)
        self.queue = Queue(config.queue, config.out, dtype=torch.float32, seed=torch.default_generator)
        self._keys: Tensor | None = None

    @property
    def shares_norm(self) -> bool:
        return self.config.norm_groups == 1

    def embed(self, views: Views) -> Tensor:
        """Queries `[(V - 1)·B, out]`: of all views but the second."""
        size = self._group_size(views)
        queries = [view for i, view in enumerate(views.each()) if i != 1]
        return torch.cat([self.projector(_in_groups(self.backbone, view, size)) for view in queries])

    def targets(self, views: Views, step: StepState, images: int) -> Tensor:
        """Keys `[B, out]` of the second view. The whole batch is shuffled, its groups pass one after another."""
        keys = self._shuffled_keys(views.each()[1], min(images, self._group_size(views)), step)
        return F.normalize(keys.float())

    def loss_of(self, embedded: Tensor, targets: Tensor | None, views: Views, step: StepState) -> Losses:
        assert targets is not None
        keys, queries = targets, embedded.split(views.batch_size)
        self._keys = keys
        queue, tau = self.queue.rows, self.config.temperature
        losses = [info_nce(q, keys, queue=queue, temperature=tau) for q in (queries[1:] if step.logged else queries)]
        if not step.logged:
            return Losses(torch.stack(losses).mean())
        loss, metrics = info_nce(queries[0], keys, queue=queue, temperature=tau, return_metrics=True)
        return Losses(
            torch.stack([loss, *losses]).mean(),
            {"accuracy": metrics.accuracy, "entropy": metrics.entropy, "embedding_std": embedding_std(keys)},
        )

    def after_step(self, step: StepState) -> None:
        """The authors move the key network before its forward pass, which is after the optimizer's last step."""
        update_target((self.key_backbone, self.key_projector), (self.backbone, self.projector), self.config.momentum)
        if self._keys is not None:
            self.queue.enqueue(self._keys)
            self._keys = None

    def _group_size(self, views: Views) -> int:
        """Images of a view that share statistics: of the whole batch, of which `views` may be a part."""
        groups = self.config.norm_groups
        return views.whole_batch * size_and_rank(group_name(None))[0] // groups if groups > 1 else views.whole_batch

    def _shuffled_keys(self, images: Tensor, size: int, step: StepState) -> Tensor:
        if self.config.norm_groups == 1:
            return self.key_projector(_in_groups(self.key_backbone, images, size))
        world, rank = size_and_rank(group := group_name(None))
        everyone = gather_rows(images, 1, group)
        # All images in the order of their hashes: a function of seed and step alone, so that a resumed run shuffles
        # alike, and drawn where the images are, so that nothing is copied there.
        order = sample_negatives(len(everyone), len(everyone), seed=step.seed, step=step.step, device=images.device)
        features = _in_groups(self.key_backbone, everyone[order.chunk(world)[rank]], size)
        return gather_rows(self.key_projector(features), 1, group)[torch.argsort(order).chunk(world)[rank]]


def _in_groups(backbone: nn.Module, images: Tensor, size: int) -> Tensor:
    return torch.cat([backbone(group) for group in images.split(size)])
