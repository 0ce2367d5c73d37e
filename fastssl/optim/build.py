"""From a recipe's constants to an optimizer with its parameter groups."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from fastssl_kernels import LARS, exclude_from_adaptation
from torch import nn

from ..errors import UserError
from .schedules import cosine_with_warmup


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its schedule."""

    name: Literal["lars", "sgd", "adamw"] = "lars"
    """LARS (arXiv 1708.03888), SGD with momentum, or AdamW."""
    lr: float = 0.3
    """Base learning rate; `lr_scaling` turns it into the peak."""
    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"
    """Peak = lr · batch / 256, lr · √batch, or lr."""
    momentum: float = 0.9
    """Momentum (β₁ of AdamW)."""
    weight_decay: float = 1e-6
    """Weight decay of the parameters that are not excluded."""
    lars_variant: Literal["A", "B", "C"] = "A"
    """A: SimCLR; B: BYOL, MoCo v3; C: LARC (SwAV)."""
    lars_eta: float = 0.001
    """Trust coefficient η."""
    exclude: Literal["bias_and_norm", "none"] = "bias_and_norm"
    """Parameters without weight decay and without LARS adaptation."""
    schedule: Literal["cosine", "cosine_by_epoch", "steps"] = "cosine"
    """After the warm-up: half a cosine by step, the same held through each epoch (MoCo v2), or tenths (MoCo v1)."""
    milestones: tuple[float, ...] = ()
    """Epochs after which the learning rate is a tenth of what it was ("steps")."""
    warmup_epochs: float = 10.0
    """Epochs of linear warm-up."""
    warmup_start: float = 0.0
    """Learning rate of the first step, as a share of the peak."""
    final_lr: float = 0.0
    """Learning rate that the cosine ends at, as a share of the peak."""

    def validate(self) -> None:
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise UserError(f"--optim.lr must be > 0, got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise UserError(f"--optim.momentum must be in [0, 1), got {self.momentum}")
        if not 0 < self.lars_eta < math.inf:
            raise UserError(f"--optim.lars-eta must be > 0 and finite, got {self.lars_eta}")
        for name in ("weight_decay", "warmup_epochs", "warmup_start", "final_lr"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise UserError(f"--optim.{name.replace('_', '-')} must be >= 0, got {value}")
        if self.schedule == "steps" and (not self.milestones or list(self.milestones) != sorted(self.milestones)):
            raise UserError(f"--optim.milestones must be ascending epochs, got {self.milestones}")

    def peak_lr(self, batch_size: int) -> float:
        """Peak learning rate of a global batch of `batch_size` images."""
        return self.lr * {"linear": batch_size / 256, "sqrt": math.sqrt(batch_size), "none": 1.0}[self.lr_scaling]

    def lr_at(self, step: int, *, batch_size: int, steps_per_epoch: int, total_steps: int) -> float:
        """Learning rate of `step`, counted from 0."""
        peak = self.peak_lr(batch_size)
        warmup = min(round(self.warmup_epochs * steps_per_epoch), total_steps)
        if self.schedule == "steps" and step >= warmup:
            return peak * 0.1 ** sum(step >= milestone * steps_per_epoch for milestone in self.milestones)
        if self.schedule == "cosine_by_epoch" and step >= warmup:
            step -= step % steps_per_epoch
        return cosine_with_warmup(
            step,
            peak=peak,
            total_steps=total_steps,
            warmup_steps=warmup,
            start=self.warmup_start * peak,
            final=self.final_lr * peak,
        )


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer over all trained parameters of `module`; the engine sets `lr` of every group before each step."""
    config.validate()
    groups = exclude_from_adaptation(module, config.exclude, weight_decay=config.weight_decay)
    if config.name == "lars":
        return LARS(groups, lr=config.lr, momentum=config.momentum, eta=config.lars_eta, variant=config.lars_variant)
    plain = [{key: value for key, value in g.items() if key != "adapt"} for g in groups]
    if config.name == "sgd":
        # Not fused: on the CPU that kernel takes a gradient with other strides than its weight's for the same layout.
        return torch.optim.SGD(plain, lr=config.lr, momentum=config.momentum, foreach=True)
    return torch.optim.AdamW(plain, lr=config.lr, betas=(config.momentum, 0.999), fused=True)
