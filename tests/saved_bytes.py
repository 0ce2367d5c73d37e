"""Bytes that a backward pass waits for, counted where autograd saves and frees them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class SavedBytes:
    """Counts storages, each once however often it is saved, but not those of `module`'s parameters and buffers."""

    def __init__(self, module: nn.Module) -> None:
        self.now = self.peak = 0
        self._own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
        self._uses: dict[int, int] = {}


@contextlib.contextmanager
def saved_bytes(module: nn.Module) -> Iterator[SavedBytes]:
    """Counts what is saved within."""
    count = SavedBytes(module)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Saved(count, tensor), lambda saved: saved.tensor):
        yield count


class _Saved:
    def __init__(self, count: SavedBytes, tensor: Tensor) -> None:
        self.tensor, self.count = tensor.detach(), count
        self.place, self.bytes = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        if self.place in count._own:
            return
        count._uses[self.place] = count._uses.get(self.place, 0) + 1
        if count._uses[self.place] == 1:
            count.now += self.bytes
            count.peak = max(count.peak, count.now)

    def __del__(self) -> None:
        if self.place in self.count._own:
            return
        self.count._uses[self.place] -= 1
        if not self.count._uses[self.place]:
            self.count.now -= self.bytes
