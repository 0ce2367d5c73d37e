"""One optimizer step."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..data.views import Views
from ..methods import Losses, Method, StepState
from .precision import autocast


def train_step(
    method: Method,
    optimizer: torch.optim.Optimizer,
    views: Views,
    state: StepState,
    *,
    lr: float,
    precision: str,
    loss: Callable[[Views, StepState], Losses] | None = None,
) -> Losses:
    """Forward, backward, update. Reads nothing back from the device.

    `loss` takes the place of `method.loss` where ranks share the work (see `Parallel`).
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    with autocast(views.groups[0].device, precision):
        losses = (loss or method.loss)(views, state)
    optimizer.zero_grad(set_to_none=True)
    losses.total.backward()
    method.after_backward(state)
    optimizer.step()
    method.after_step(state)
    return losses
