"""The moving average in C: one sweep over all tensors, where torch's loop ends all threads at every tensor."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.profiler import record_function

from ...native import load, run

_ALONE = 1 << 17
"""Numbers that one thread is quicker with than several."""
_SHARED = 1 << 15
"""Numbers of one tensor that torch keeps on one thread: with none larger its threads are left asleep, because a child
that is forked may use them only if its parent did not."""


class _Job(ctypes.Structure):
    """`Job` of average.c, field for field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("target", "online", "sizes")),
        ("count", ctypes.c_int64),
        ("weight", ctypes.c_float),
        ("next", ctypes.c_int64),
    )


@cache
def _library() -> ctypes.CDLL | None:
    return load(f"{__name__}._average", fastssl_average=_Job)


def available() -> bool:
    """Whether the library was built, and torch's threads can run it."""
    return _library() is not None


def average(targets: Sequence[Tensor], onlines: Sequence[Tensor], weight: float) -> bool:
    """target += weight · (online − target), element beside element in memory; weight below 0.5.

    Args:
        targets, onlines: dense fp32 tensors on the CPU, pair by pair of one memory order.

    Returns:
        Whether it was done: not where tensors overlap, which threads would race for, or have no memory of their own.
    """
    library = _library()
    assert library is not None
    sizes = array("q", map(Tensor.numel, targets))
    try:
        places = [array("Q", map(Tensor.data_ptr, tensors)) for tensors in (targets, onlines)]
    except RuntimeError:  # inside torch.func, say
        return False
    job = _Job(*(numbers.buffer_info()[0] for numbers in (*places, sizes)), len(sizes), weight)
    if not library.fastssl_average_apart(ctypes.byref(job)):
        return False
    with record_function("ema_update_"):
        run(library.fastssl_average, job, alone=sum(sizes) < _ALONE or max(sizes) <= _SHARED)
    torch.autograd.graph.increment_version(targets)  # as every other write in place does
    return True
