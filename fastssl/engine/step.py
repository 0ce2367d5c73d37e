"""One optimizer step."""

from __future__ import annotations

import numpy as np
import torch

from ..data.views import Views
from ..methods import Losses, Method, StepState
from .finite import Guard
from .loss_scale import LossScale
from .micro_batch import backward_in_micro_batches
from .precision import autocast
from .ranks import Parallel


def seed_generators(seed: int, step: int, rank: int) -> None:
    """Make what networks draw for themselves (dropout) a function of run, step and process.

    A step that is taken again, after a resume or on the same process of as many, then draws alike, on a GPU too.
    """
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0]))


def train_step(
    method: Method,
    optimizer: torch.optim.Optimizer,
    views: Views,
    state: StepState,
    *,
    lr: float,
    precision: str,
    parallel: Parallel | None = None,
    micro_batch: int | None = None,
    guard: Guard | None = None,
    loss_scale: LossScale | None = None,
) -> Losses:
    """Forward, backward and, unless `guard` refuses, update. Reads nothing back from a GPU.

    parallel: takes the place of the method where processes share the work.
    micro_batch: images that pass through the networks at a time, for the same loss and gradient; None for all.
    loss_scale: of fp16: where gradients overflow the update leaves everything as it was.
    """
    parallel = parallel or Parallel(method)
    for group in optimizer.param_groups:
        group["lr"] = lr
    if guard is not None:
        guard.remember()
    if loss_scale is not None:
        loss_scale.remember()
    optimizer.zero_grad(set_to_none=True)
    if micro_batch is not None and micro_batch < views.batch_size:
        losses = backward_in_micro_batches(
            method,
            views,
            state,
            micro_batch,
            precision=precision,
            embed=parallel.embed,
            unsynchronised=parallel.unsynchronised,
            scale=None if loss_scale is None else loss_scale.scale,
        )
    else:
        with autocast(views.groups[0].device, precision):
            losses = parallel(views, state)
        (losses.total if loss_scale is None else losses.total * loss_scale.scale).backward()
    method.after_backward(state)
    if guard is not None and guard.refuses(losses):
        return losses
    if loss_scale is None:
        optimizer.step()
        method.after_step(state)
    else:
        loss_scale.step(losses)
        method.after_step(state)
        loss_scale.settle()
    return losses
