"""Supervised training, the baseline that self-supervision is measured against (ResNet, He et al., arXiv 1512.03385).

    L = −Σ_k q_k log softmax(W f(x) + b)_k,      q = (1 − s)·one-hot(y) + s / C

on every view of an image; s is the smoothing of the labels (Szegedy et al., arXiv 1512.00567, section 7), 0 for none.
The linear classifier W, b starts from a normal distribution of deviation 0.01 (Goyal et al., arXiv 1706.02677, 5.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.views import Views
from ..errors import UserError
from .base import DataFacts, Losses, Method, MethodConfig, StepState


@dataclass(frozen=True)
class SupervisedConfig(MethodConfig):
    """Constants of the method."""

    label_smoothing: float = 0.0
    """s, the share of a label that all classes get alike, in [0, 1)."""

    def validate(self, counts: tuple[int, ...]) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"--method.label-smoothing must be in [0, 1), got {self.label_smoothing}")

    def validate_data(self, data: DataFacts, shown: int) -> None:
        if data.classes < 2:
            found = "no label for every image" if not data.classes else "one class only"
            raise UserError(
                f"supervised learns from labels, and --data has {found}: use class folders, or another method"
            )


class Supervised(Method):
    needs_data = True

    def __init__(self, config: SupervisedConfig, backbone: nn.Module, width: int, data: DataFacts) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.classifier = nn.Linear(width, data.classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def embed(self, views: Views) -> Tensor:
        """Logits `[V·B, C]`."""
        return self.classifier(torch.cat([self.backbone(group) for group in views.groups])).float()

    def loss_of(self, embedded: Tensor, targets: Tensor | None, views: Views, step: StepState) -> Losses:
        assert views.labels is not None
        logits = embedded
        labels = views.labels.repeat(views.total)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        return Losses(loss, {"accuracy": (logits.detach().argmax(1) == labels).float().mean()})
