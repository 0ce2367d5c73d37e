"""Projection and prediction heads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp_head(
    widths: Sequence[int],
    *,
    hidden_bias: bool = False,
    hidden_norm: bool = True,
    last_norm: bool = True,
    last_norm_bias: bool = False,
    last_bias: bool | None = None,
) -> nn.Sequential:
    """A perceptron `widths[0] → … → widths[-1]`, each hidden layer followed by batch norm and ReLU.

    Args:
        hidden_bias: biases of the hidden linear layers.
        hidden_norm: batch norm after them.
        last_norm: batch norm after the last layer too.
        last_norm_bias: whether that norm has a shift; without, it keeps its scale (SimCLR's projector).
        last_bias: bias of the last linear layer; by default it has one unless a norm follows.
    """
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths[:-1]):
        layers.append(nn.Linear(width_in, width_out, bias=hidden_bias))
        if hidden_norm:
            layers.append(nn.BatchNorm1d(width_out))
        layers.append(nn.ReLU(inplace=True))
    layers.append(nn.Linear(widths[-2], widths[-1], bias=not last_norm if last_bias is None else last_bias))
    if last_norm:
        norm = nn.BatchNorm1d(widths[-1])
        if not last_norm_bias:
            norm.bias.requires_grad_(False)
        layers.append(norm)
    return nn.Sequential(*layers)
