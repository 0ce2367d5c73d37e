"""The protocol between a method and the engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import nn

from ..data.views import Views


@dataclass(frozen=True)
class StepState:
    """Where the run is: `step` counts optimizer steps from 0 to `total_steps` - 1."""

    step: int
    total_steps: int
    steps_per_epoch: int


@dataclass(frozen=True)
class MethodConfig:
    """Constants of a method."""

    def validate(self, counts: tuple[int, ...]) -> None:
        """Raise `UserError` for an impossible constant; counts: views of each size, the recipe's first size first."""

    def validate_batch(self, batch_size: int) -> None:
        """Raise `UserError` where the global batch does not fit."""


@dataclass
class Losses:
    """What one step computed: the scalar to differentiate and named detached scalars, all on the device."""

    total: torch.Tensor
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)


class Method(nn.Module, ABC):
    """Networks, queues and prototypes are ordinary modules and buffers: `state_dict` holds all that matters."""

    backbone: nn.Module
    """The network that is trained to be kept: what is evaluated and exported."""

    @abstractmethod
    def loss(self, views: Views, step: StepState) -> Losses:
        """Losses of one batch of views `[counts·B, 3, S, S]`, a group per resolution."""

    def after_backward(self, step: StepState) -> None:
        """Called between the backward pass and the optimizer's step: frozen prototypes lose their gradients here."""

    def after_step(self, step: StepState) -> None:
        """Called after every optimizer step: EMA, queue, prototypes."""
