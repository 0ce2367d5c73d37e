"""A trace of training steps for the viewers of Chrome and Perfetto, and the operations that took most."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from ..errors import UserError
from .timeline import BACKWARD
from .training import Supply, Training

PROFILED = 3
"""Steps: the first warms the profiler up and is not in the trace."""
TRACE = "trace.json"
OPERATIONS = 15


def profiled(folder: Path, supply: Supply, training: Training) -> list[dict[str, Any]]:
    """Write the trace of steps on the loader's views into `folder`; the operations that took most of them.

    Each has its name, calls, `cpu_ms` and `gpu_ms` (without what it calls) and its share of all operations, on the GPU
    where there is one. The parts of a step are ranges of the trace, called "fastssl: forward" and so on.
    """
    on_gpu = training.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    supply.timed_steps(1, training)
    with profile(activities=activities) as recorded:
        ranges = _Ranges()
        training.timeline.entered = ranges.enter
        try:
            supply.timed_steps(PROFILED - 1, training)
        finally:
            training.timeline.entered = lambda part: None
            ranges.enter(None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        recorded.export_chrome_trace(str(folder / TRACE))
    except (OSError, RuntimeError) as error:
        raise UserError(f"--profile {folder} cannot be written: {error}") from None
    rows = []
    for event in recorded.key_averages():
        if not event.key.startswith(("fastssl: ", "ProfilerStep")):
            gpu = event.self_device_time_total if on_gpu else 0.0
            rows.append(
                {
                    "name": event.key,
                    "calls": event.count,
                    "cpu_ms": 1e-3 * event.self_cpu_time_total,
                    "gpu_ms": 1e-3 * gpu,
                }
            )
    by = "gpu_ms" if on_gpu else "cpu_ms"
    total = sum(row[by] for row in rows) or 1.0
    rows.sort(key=lambda row: -row[by])
    return [{**row, "share": row[by] / total} for row in rows[:OPERATIONS]]


class _Ranges:
    """Names the parts of a step in the trace. A range ends in the thread in which it began."""

    def __init__(self) -> None:
        self._open: torch.profiler.record_function | None = None
        self._thread = threading.get_ident()

    def enter(self, part: str | None) -> None:
        if part == BACKWARD and threading.get_ident() != self._thread:
            return  # on a GPU the backward pass has a thread of its own
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None
        if part is not None:
            self._open = record_function(f"fastssl: {part}")
            self._open.__enter__()
