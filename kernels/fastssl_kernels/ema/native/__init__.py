"""The moving average in C: one sweep over all tensors, where torch's loop ends all threads at every tensor."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from ...native import load, on_threads

_ALONE = 1 << 17
"""Numbers that one thread is quicker with than two."""


class _Job(ctypes.Structure):
    """`Job` of average.c, field for field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("target", "online", "sizes")),
        ("count", ctypes.c_int64),
        ("weight", ctypes.c_float),
        ("next", ctypes.c_int64),
    )


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    return load(f"{__name__}._average", "fastssl_average_job_size", _Job.next.offset)


def available() -> bool:
    """Whether the library was built."""
    return _library() is not None


def average(targets: Sequence[Tensor], onlines: Sequence[Tensor], weight: float) -> bool:
    """target += weight · (online − target), element beside element in memory; weight below 0.5.

    Args:
        targets, onlines: dense fp32 tensors on the CPU, pair by pair of one memory order.

    Returns:
        Whether it was done: not where tensors overlap, which threads would race for.
    """
    library = _library()
    assert library is not None
    sizes = [*map(Tensor.numel, targets)]
    places = [[*map(Tensor.data_ptr, tensors)] for tensors in (targets, onlines)]
    spans = sorted(
        (place, place + 4 * size) for each in places for place, size in zip(each, sizes, strict=True) if size
    )
    if any(end > start for (_, end), (start, _) in pairwise(spans)):
        return False
    count = len(sizes)
    pointers, numbers = ctypes.c_void_p * count, ctypes.c_int64 * count
    arrays = pointers(*places[0]), pointers(*places[1]), numbers(*sizes)
    job = _Job(*(ctypes.addressof(array) for array in arrays), count, weight)
    on_threads(lambda: int(library.fastssl_average(ctypes.byref(job))), 1 + sum(sizes) // _ALONE)
    torch.autograd.graph.increment_version(targets)  # as every other write in place does
    return True
