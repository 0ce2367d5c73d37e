"""Batch norm's running statistics where a network runs twice on the same images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


@contextlib.contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Within, running statistics stay as they are; batches are normalised by their own as before.

    For the second of two passes over the same images. Nothing is copied and no kernel launched: the weight of a new
    batch is 0, and batches are not counted.
    """
    kept: list[tuple[_NormBase, float | None, Any]] = []
    try:
        for module in network.modules():
            if isinstance(module, _NormBase) and module.track_running_stats:
                kept.append((module, module.momentum, module.num_batches_tracked))
                module.momentum, module.num_batches_tracked = 0.0, None
        yield
    finally:
        for module, momentum, counted in kept:
            module.momentum, module.num_batches_tracked = momentum, counted
