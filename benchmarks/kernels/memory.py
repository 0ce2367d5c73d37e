"""Peak memory of one call, beyond what is there before it."""

from __future__ import annotations

import ctypes
import gc
import resource
from collections.abc import Callable
from pathlib import Path

import torch

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """On a GPU what torch allocated; on a CPU the process's high-water mark in main memory, results included.

    On a CPU what was freed before is given back to the system first, or the call would use it again unseen; where the
    system cannot forget its mark (it is not Linux), a call that takes less than one before it counts 0.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    if FORGET.exists():
        FORGET.write_text("5")
    before = _status("VmRSS")
    result = call()
    peak = _status("VmHWM") - before
    del result
    return max(peak, 0)


def _status(field: str) -> int:
    """Bytes."""
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    kilobytes = next((int(line.split()[1]) for line in lines if line.startswith(field)), None)
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if kilobytes is None else kilobytes)
