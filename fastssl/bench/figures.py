"""From the samples of `fastssl.bench.result` to the figures that are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from .result import Result
from .timeline import LOSS, OPTIMIZER, PARTS, REST, VIEWS, WHOLE

T = TypeVar("T")

NAMES = {
    "views": "views: read, decode, draw",
    "forward": "forward: backbone, heads",
    "targets": "targets: network not trained",
    "loss": "loss, its gradient",
    "backward": "backward: backbone, heads",
    "checks": "checks: all is finite",
    "optimizer": "optimizer, what follows it",
}
"""Of the parts, for a reader."""


@dataclass(frozen=True)
class Part:
    """Seconds of one part, in a step and alone, and its share of the step."""

    key: str
    in_step: float
    low: float
    high: float
    """10th and 90th percentile in a step."""
    alone: float
    share: float


@dataclass(frozen=True)
class Figures:
    """What the samples say; rates are images a second of all processes together.

    Times are means of the middle half of the samples. Parts are taken of the same steps as the whole, so that they sum
    to it, which medians do not; and a step that another process disturbed does not count.
    """

    parts: tuple[Part, ...]
    step: Part
    """The full step, of its own samples; alone: the sum of the parts alone."""
    residual: float
    """Seconds of the step that its parts do not explain."""
    residual_alone: float | None
    """Seconds of the step that the parts alone do not explain; None where views are made beside the step."""
    full: float
    model: float
    views: float
    supervised: float
    data_wait: float
    """Share of the step that waits for views."""
    roofline: float
    """Of the full step: images/s × cost multiple ÷ supervised images/s."""
    roofline_model: float
    """The same of steps on synthetic views."""
    efficiency: float | None
    """Images/s of all processes ÷ (their number × those of one without communication); None for one process."""
    busy: float | None
    """CPU time of steps on synthetic views ÷ (their time × threads of the model); None on a GPU."""
    view_cores: float
    """Cores that make views as fast as the model takes them, by the CPU time of views alone, over all processes."""


def figures(result: Result) -> Figures:
    setting = result.setting
    batch, world = setting["batch_size"], setting["processes"]
    usual = middle(result.full, key=lambda reading: reading[WHOLE])
    synthetic = middle(result.synthetic, key=lambda reading: reading[WHOLE])
    step, model_step = (mean(reading[WHOLE] for reading in some) for some in (usual, synthetic))
    apart = {
        **{key: mean(reading.get(key, 0.0) for reading in synthetic) for key in PARTS},
        **{key: typical([reading[key] for reading in result.alone]) for key in (LOSS, OPTIMIZER)},
        VIEWS: typical(result.views),
    }
    parts = []
    for key in PARTS:
        seconds = mean(reading.get(key, 0.0) for reading in usual)
        around = _around([reading.get(key, 0.0) for reading in result.full])
        parts.append(Part(key, seconds, *around, apart[key], seconds / step))
    model, views = batch / model_step, batch / apart[VIEWS]
    plain = result.supervised_batch_size / typical(result.supervised)
    together = sum(apart.values())
    return Figures(
        parts=tuple(parts),
        step=Part(WHOLE, step, *_around([reading[WHOLE] for reading in result.full]), together, 1.0),
        residual=step - sum(part.in_step for part in parts),
        residual_alone=None if setting["prefetch"] else step - together,
        full=batch / step,
        model=model,
        views=views,
        supervised=plain,
        data_wait=parts[0].share,
        roofline=batch / step * result.multiple / plain,
        roofline_model=model * result.multiple / plain,
        efficiency=typical(result.one_rank) / model_step if result.one_rank else None,
        busy=_busy(result),
        view_cores=typical(result.views_cpu) * world * model / batch,
    )


def _busy(result: Result) -> float | None:
    if result.setting["device"] != "cpu" or not result.synthetic_cpu:
        return None
    return sum(result.synthetic_cpu) / (sum(r[WHOLE] for r in result.synthetic) * result.setting["threads"])


def middle(samples: Sequence[T], key: Callable[[T], float]) -> list[T]:
    """The middle half of the samples: without the least and the greatest quarter by `key`."""
    left_out = len(samples) // 4
    return sorted(samples, key=key)[left_out : len(samples) - left_out]


def typical(samples: Sequence[float]) -> float:
    """Mean of the middle half."""
    return mean(middle(samples, key=lambda sample: sample))


def mean(samples: Iterable[float]) -> float:
    return float(np.mean(list(samples)))


def _around(samples: Sequence[float]) -> tuple[float, float]:
    low, high = np.percentile(samples, [10, 90]).tolist()
    return low, high


def rows(result: Result) -> list[dict[str, Any]]:
    """One a part, one for what is left and one for the whole step; milliseconds and shares."""
    found = figures(result)
    table = [
        {
            "part": part.key,
            "in_step_ms": 1e3 * part.in_step,
            "in_step_p10_ms": 1e3 * part.low,
            "in_step_p90_ms": 1e3 * part.high,
            "alone_ms": 1e3 * part.alone,
            "share": part.share,
        }
        for part in (*found.parts, found.step)
    ]
    rest = {**dict.fromkeys(table[0]), "part": REST, "in_step_ms": 1e3 * found.residual}
    rest["share"] = found.residual / found.step.in_step
    rest["alone_ms"] = None if found.residual_alone is None else 1e3 * found.residual_alone
    return [*table[:-1], rest, table[-1]]
