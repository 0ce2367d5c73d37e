"""Target networks: slow copies of the trained ones."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from fastssl_kernels import ema_update_
from torch import Tensor, nn

from ..data.views import Views
from .base import StepState

Module = TypeVar("Module", bound=nn.Module)


def target_copy(module: Module, *, fresh: bool) -> Module:
    """A copy that is not trained. `fresh` draws its weights anew, as BYOL does; MoCo starts from the same ones."""
    target = copy.deepcopy(module)
    if fresh and callable(draw := getattr(module, "fresh", None)):
        target.load_state_dict(draw().state_dict())
    elif fresh:
        for part in target.modules():
            if callable(reset := getattr(part, "reset_parameters", None)):
                reset()
        for part in target.modules():
            if callable(initialise := getattr(part, "initialise", None)):
                initialise()
    return target.requires_grad_(False)


def target_rows(networks: Sequence[nn.Module], views: Views, images: int) -> Tensor:
    """Rows `[L·B, D]` of the large views, through one network after the other, at most so many images at a time.

    Views pass apart, since their distributions differ and batch norm would mix them.
    """
    parts = [part for view in views.each()[: views.counts[0]] for part in view.split(images)]
    for network in networks:
        parts = [network(part) for part in parts]
    return torch.cat(parts)


def update_target(target: Iterable[nn.Module], online: Iterable[nn.Module], momentum: float) -> None:
    """target ← momentum · target + (1 − momentum) · online, parameters only: batch norm keeps its own statistics."""
    ema_update_(_parameters(target), _parameters(online), momentum)


def _parameters(modules: Iterable[nn.Module]) -> list[torch.Tensor]:
    return [p.detach() for module in modules for p in module.parameters()]


def cosine_momentum(base: float, step: StepState) -> float:
    """From `base` to 1 at the last step: 1 − (1 − base)·(cos(πk/K) + 1) / 2 (BYOL, section 3.2)."""
    return 1.0 - (1.0 - base) * (math.cos(math.pi * step.step / step.total_steps) + 1.0) / 2.0
