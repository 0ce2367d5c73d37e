"""Memory for views and decoded pixels, used again when nobody looks at the old ones any more.

A batch of views is tens of megabytes, which the C library takes from the system and gives back each time: the page
faults then cost as much as drawing. Blocks that it keeps on its heap, and each of another size, leave gaps there.
"""

from __future__ import annotations

import ctypes
import math
import sys
import threading

import torch
from torch import Tensor

MOST_KEPT = 8
"""Buffers kept of each size: more are in use only if somebody collects batches."""


class Buffers:
    """Hands out CPU tensors. One is idle when no tensor but the kept one shares its storage.

    Args:
        dtype: of the tensors.
        pin: page-locked memory, from which a GPU copies while the CPU goes on.
        step: a buffer's numbers are rounded up to a multiple of it, so that one serves shapes of nearly one size.
    """

    def __init__(self, *, dtype: torch.dtype = torch.float32, pin: bool = False, step: int = 1) -> None:
        self._dtype, self._pin, self._step = dtype, pin, step
        self._kept: dict[int, list[Tensor]] = {}
        self._lock = threading.Lock()

    def empty(self, *shape: int) -> Tensor:
        """A tensor of any content, contiguous."""
        numbers = math.prod(shape)
        size = -(-numbers // self._step) * self._step
        with self._lock:
            kept = self._kept.setdefault(size, [])
            for buffer in kept:
                if _sharers(buffer) == 1:
                    return buffer[:numbers].view(shape)
            fresh = torch.empty(size, dtype=self._dtype, pin_memory=self._pin)
            if len(kept) < MOST_KEPT and _sharers(fresh) == 1:
                kept.append(fresh)
            return fresh[:numbers].view(shape)


def give_back_free_memory() -> None:
    """Return the free pages of the C library's heap to the system, where it is glibc.

    What is decoded image by image leaves gaps there, as each is of another size.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(ctypes.c_size_t(0))


def _sharers(tensor: Tensor) -> int:
    """Tensors that share the storage; a high number where this torch does not tell, so that nothing is used again."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    if count is None:
        return 1 << 30
    storage = tensor.untyped_storage()  # itself one more
    return int(count(storage._cdata)) - 1
