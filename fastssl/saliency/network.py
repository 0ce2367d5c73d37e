"""A small encoder and decoder that marks the foreground, and the loss that it learns from noisy masks with."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.resnet import BasicBlock

WIDTHS = 16, 32, 64, 128
MULTIPLE = 16
"""Sides of the input are multiples of this."""
BETA_SQUARED = 0.3
"""β² of the F-measure: precision weighs more than recall, as usual in saliency (and in DeepUSPS)."""


class SaliencyNetwork(nn.Module):
    """Images `[B, 3, S, S]` in 0 … 1 to logits of the foreground `[B, S, S]`.

    A stem of stride 2, three residual blocks of stride 2, the mean over the whole image added to the coarsest map, and
    back up to stride 2 with the finer maps added; the logits are doubled in size. 0.5 million parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        first, *_, last = WIDTHS
        self.stem = nn.Sequential(nn.Conv2d(3, first, 3, 2, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        self.down = nn.ModuleList(BasicBlock(a, b, 2) for a, b in pairwise(WIDTHS))
        self.whole = nn.Linear(last, last)
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(b, a, 3, 1, 1, bias=False), nn.BatchNorm2d(a)) for a, b in pairwise(WIDTHS)
        )
        self.mend = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, a, 3, 1, 1, bias=False), nn.BatchNorm2d(a), nn.ReLU()) for a in WIDTHS[:-1]
        )
        self.head = nn.Conv2d(first, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        maps = [self.stem((images - 0.5) / 0.25)]
        for block in self.down:
            maps.append(block(maps[-1]))
        x = maps.pop()
        x = x + self.whole(x.mean(dim=(2, 3)))[:, :, None, None]
        for up, mend in zip(reversed(self.up), reversed(self.mend), strict=True):
            x = mend(torch.relu(_doubled(up(x)) + maps.pop()))
        return _doubled(self.head(x))[:, 0]


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def f_measure_loss(logits: Tensor, targets: Tensor, beta_squared: float = BETA_SQUARED) -> Tensor:
    """1 − F_β of each image, averaged over the images:

        F_β = (1 + β²) TP / (β² Σ t + Σ p),      TP = Σ p t,      p = σ(logit)

    It compares shares of whole masks, so that the wrong pixels of a noisy mask do not each pull with full weight.
    (Nguyen et al., "DeepUSPS: Deep robust unsupervised saliency prediction with self-supervision", arXiv 1909.13055.)

    Args:
        logits: `[B, H, W]`.
        targets: `[B, H, W]` in 0 … 1. An image whose targets are all 0 gives no gradient.
    """
    p = torch.sigmoid(logits.float())
    hit = (p * targets).sum(dim=(1, 2))
    f = (1 + beta_squared) * hit / (beta_squared * targets.sum(dim=(1, 2)) + p.sum(dim=(1, 2)))
    return (1 - f).mean()
