"""Memory for views, used again when nobody looks at the old ones any more.

A batch of views is tens of megabytes, which the C library takes from the system and gives back each time: the page
faults then cost as much as drawing.
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
    """Hands out float32 CPU tensors. One is idle when no tensor but the kept one shares its storage.

    Args:
        pin: page-locked memory, from which a GPU copies while the CPU goes on.
    """

    def __init__(self, *, pin: bool = False) -> None:
        self._pin = pin
        self._kept: dict[int, list[Tensor]] = {}
        self._lock = threading.Lock()

    def empty(self, *shape: int) -> Tensor:
        """A tensor of any content, contiguous."""
        numbers = math.prod(shape)
        with self._lock:
            kept = self._kept.setdefault(numbers, [])
            for buffer in kept:
                if _sharers(buffer) == 1:
                    return buffer.view(shape)
            fresh = torch.empty(numbers, pin_memory=self._pin)
            if len(kept) < MOST_KEPT and _sharers(fresh) == 1:
                kept.append(fresh)
            return fresh.view(shape)


def give_back_free_memory() -> None:
    """Return the free pages of the C library's heap to the system, where it is glibc.

    Decoded batches below its limit for mapped blocks (32 MB) leave gaps in the heap, as each is of another size.
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
