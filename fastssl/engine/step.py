"""One optimizer step."""

from __future__ import annotations

import torch

from ..data.views import Views
from ..methods import Losses, Method, StepState
from .finite import Guard
from .precision import autocast


def train_step(
    method: Method,
    optimizer: torch.optim.Optimizer,
    views: Views,
    state: StepState,
    *,
    lr: float,
    precision: str,
    guard: Guard,
) -> Losses:
    """Forward, backward and, unless `guard` refuses, update. Reads nothing back from a GPU."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    guard.remember()
    with autocast(views.groups[0].device, precision):
        losses = method.loss(views, state)
    optimizer.zero_grad(set_to_none=True)
    losses.total.backward()
    method.after_backward(state)
    if guard.refuses(losses):
        return losses
    optimizer.step()
    method.after_step(state)
    return losses
