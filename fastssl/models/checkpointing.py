"""Activation checkpointing: keep what enters a block and compute the rest again when the gradient comes by."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import UserError
from .statistics import frozen_statistics


class _Checkpointed(nn.Module):
    """Stands before a block's own class."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        forward = super().forward
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        contexts = partial(_contexts, self)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _contexts(block: nn.Module) -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
    """Of the forward pass, and of its repetition, which must not move batch norm's running statistics again."""
    return contextlib.nullcontext(), frozen_statistics(block)


def checkpoint_activations(network: nn.Module) -> None:
    """Let every block of `network` forget its activations. Outputs, gradients and statistics keep their bits.

    A block is a member of a list or a sequence of modules that is made of modules itself: a residual block, a layer of
    a transformer. Blocks get a class of their own in place, under the same name and with the same parameters, so that
    copies and state dictionaries work as before.

    Raises:
        UserError: the network has no such blocks.
    """
    found = list(_blocks(network))
    if not found:
        raise UserError(
            f"--train.checkpoint-activations finds no blocks in {type(network).__name__}, no nn.Sequential or "
            "nn.ModuleList whose members are made of modules: leave it out"
        )
    for block in found:
        kind = type(block)
        block.__class__ = type(kind.__name__, (_Checkpointed, kind), {"__module__": kind.__module__})


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The outermost blocks."""
    within = isinstance(network, nn.Sequential | nn.ModuleList)
    for child in network.children():
        if within and not isinstance(child, nn.Sequential | nn.ModuleList) and any(True for _ in child.children()):
            yield child
        else:
            yield from _blocks(child)
