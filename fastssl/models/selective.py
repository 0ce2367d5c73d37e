"""Selective kernels as SimCLR v2 uses them (Li et al., arXiv 1903.06586; Chen et al., arXiv 2006.10029)."""

from __future__ import annotations

import torch
from torch import nn

from .conv import Conv2d

LEAST_WIDTH = 32
"""Channels that the mixing layer has at least."""


class SelectiveKernel(nn.Module):
    """Two 3 × 3 streams from one convolution, mixed channel by channel with weights that see the whole image."""

    def __init__(self, channels_in: int, channels: int, stride: int, ratio: float) -> None:
        super().__init__()
        middle = max(int(channels * ratio), LEAST_WIDTH)
        self.conv = Conv2d(channels_in, 2 * channels, 3, stride)
        self.bn = nn.BatchNorm2d(2 * channels)
        self.reduce = Conv2d(channels, middle, 1)
        self.reduce_bn = nn.BatchNorm2d(middle)
        self.expand = Conv2d(middle, 2 * channels, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, channels_in, H, W]` to `[B, channels, H / stride, W / stride]`, not negative."""
        first, second = self.relu(self.bn(self.conv(x))).chunk(2, dim=1)
        whole = (first + second).mean(dim=(2, 3), keepdim=True)
        a, b = self.expand(self.relu(self.reduce_bn(self.reduce(whole)))).chunk(2, dim=1)
        share = torch.sigmoid(a - b)  # the softmax of two
        return first * share + second * (1 - share)
