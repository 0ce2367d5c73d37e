"""Projection and prediction heads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp_head(
    widths: Sequence[int], *, hidden_bias: bool = False, last_norm: bool = True, last_norm_bias: bool = False
) -> nn.Sequential:
    """A perceptron `widths[0] → … → widths[-1]` with batch norm and ReLU after every hidden layer.

    `last_norm` puts batch norm after the last layer too; `last_norm_bias=False` then keeps its scale and freezes its
    shift at zero (SimCLR's projector). Without `last_norm` the last layer has a bias.
    """
    layers: list[nn.Module] = []
    for index, (width_in, width_out) in enumerate(pairwise(widths)):
        last = index == len(widths) - 2
        bias = not last_norm if last else hidden_bias
        layers.append(nn.Linear(width_in, width_out, bias=bias))
        if last and last_norm:
            norm = nn.BatchNorm1d(width_out)
            if not last_norm_bias:
                norm.bias.requires_grad_(False)
            layers.append(norm)
        elif not last:
            layers += [nn.BatchNorm1d(width_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
