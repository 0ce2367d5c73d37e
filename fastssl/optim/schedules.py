"""Schedules as pure functions of the step."""

from __future__ import annotations

import math


def cosine_with_warmup(
    step: int, *, peak: float, total_steps: int, warmup_steps: int, start: float = 0.0, final: float = 0.0
) -> float:
    """Linear from `start` to `peak` over `warmup_steps`, then half a cosine to `final` (arXiv 1608.03983).

    `step` counts from 0. The warm-up's first step has `start`; step `warmup_steps` has `peak`; the cosine runs over the
    remaining steps (SimCLR's step - warm-up) and would reach `final` at `total_steps`.
    """
    if step < warmup_steps:
        return start + (peak - start) * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
