"""The protocol between a method and the engine."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from ..data.views import Views
from ..errors import UserError


@dataclass(frozen=True)
class StepState:
    """Where the run is: `step` counts optimizer steps from 0 to `total_steps` - 1."""

    step: int
    total_steps: int
    steps_per_epoch: int
    seed: int = 0
    logged: bool = True
    """Whether the metrics of this step are read. A loss may leave them out where they are not."""

    @property
    def epoch(self) -> int:
        return self.step // self.steps_per_epoch


@dataclass(frozen=True)
class DataFacts:
    """What a method may know of the training images before it sees one."""

    images: int = 0
    """N; the ids in `Views` are below it."""
    classes: int = 0
    """The labels in `Views` are below it; 0 where images have none."""


@dataclass(frozen=True)
class MethodConfig:
    """Constants of a method."""

    def validate(self, counts: tuple[int, ...]) -> None:
        """Raise `UserError` for an impossible constant; counts: views of each size, the recipe's first size first."""

    def validate_batch(self, batch_size: int) -> None:
        """Raise `UserError` where the global batch does not fit."""

    def validate_ranks(self, world: int) -> None:
        """Raise `UserError` where the number of processes does not fit."""

    def validate_micro_batch(self, images: int, batch_size: int) -> None:
        """Raise `UserError` where a batch cannot pass through the networks so many images at a time."""

    def validate_data(self, data: DataFacts, shown: int) -> None:
        """Raise `UserError` where the training images, of which an epoch shows so many, do not: asked before anything
        is built."""


def check_above_zero(config: MethodConfig, *names: str) -> None:
    """Raise `UserError` for a constant that is not above 0 and finite."""
    for name in names:
        value = getattr(config, name)
        if not value > 0 or math.isinf(value):
            wanted = "finite" if value > 0 else "> 0"
            raise UserError(f"--method.{name.replace('_', '-')} must be {wanted}, got {value}")


@dataclass
class Losses:
    """What one step computed: the scalar to differentiate and named detached scalars, all on the device."""

    total: torch.Tensor
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)


class Method(nn.Module, ABC):
    """Networks, queues, memories and prototypes are ordinary modules and buffers: `state_dict` holds all that matters.

    It is built from (constants, backbone, feature width), and from `DataFacts` where `needs_data`. The engine calls
    `before_epoch` where an epoch begins, then `loss`, `after_backward` and `after_step` for each batch. Views carry the
    ids of their images, and labels where the data has them. A run that is resumed in mid-epoch does not call
    `before_epoch` again.

    A loss has three parts, so that a large batch can pass through the networks a few images at a time
    (`engine.micro_batch`): `embed` runs what is trained, `targets` what is not, and `loss_of` compares. What a step
    leaves behind (a queue's next rows, a memory's) comes from `loss_of`, which runs once.
    """

    backbone: nn.Module
    """The network that is trained to be kept: what is evaluated and exported."""
    needs_data: ClassVar[bool] = False
    """Whether the method's state depends on how many images or classes there are."""

    @property
    def shares_norm(self) -> bool:
        """Whether batch norm is meant to see the whole batch, over all ranks."""
        return True

    def before_epoch(self, step: StepState, views: Callable[[], Iterator[Views]]) -> None:
        """Called before an epoch's first step; `views()` gives the epoch's batches to whoever must look at them first.

        It runs without gradients, in the precision of the training.
        """

    def loss(self, views: Views, step: StepState) -> Losses:
        """Losses of one batch of views `[counts·B, 3, S, S]`, a group per resolution."""
        embedded = self.embed(views)
        with torch.no_grad():
            targets = self.targets(views, step, views.batch_size)
        return self.loss_of(embedded, targets, views, step)

    @abstractmethod
    def embed(self, views: Views) -> torch.Tensor:
        """`[k·B, D]`: k rows an image, as view-major as views are, with gradients into the trained networks.

        Batch norm aside, an image's rows depend on no other image, and the method keeps nothing of the pass.
        """

    def targets(self, views: Views, step: StepState, images: int) -> torch.Tensor | None:
        """What `loss_of` needs of networks without gradients, which run on at most so many images at a time."""
        return None

    @abstractmethod
    def loss_of(self, embedded: torch.Tensor, targets: torch.Tensor | None, views: Views, step: StepState) -> Losses:
        """Losses of a whole batch from what `embed` and `targets` made of it."""

    def after_backward(self, step: StepState) -> None:
        """Called between the backward pass and the optimizer's step: frozen prototypes lose their gradients here."""

    def after_step(self, step: StepState) -> None:
        """Called after every optimizer step: EMA, queue, prototypes."""
