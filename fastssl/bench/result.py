"""What `fastssl bench METHOD` is told, and the samples that it takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from .timeline import Reading


@dataclass(frozen=True)
class Settings:
    """How long is measured, and what the command line fixed."""

    steps: int = 30
    seconds: float = 75.0
    fixed_batch: bool = False
    fixed_precision: bool = False
    profile: Path | None = None

    def validate(self) -> None:
        if self.steps < 1:
            raise UserError(f"--bench.steps must be at least 1, got {self.steps}")
        if not 0 < self.seconds < float("inf"):
            raise UserError(f"--bench.seconds must be > 0, got {self.seconds}")


@dataclass
class Result:
    """Raw samples and what they were taken of; all plain, so that `Result(**json)` is it again."""

    environment: dict[str, Any]
    """Of this machine, from `fastssl.report.environment`."""
    setting: dict[str, Any]
    """method, recipe, backbone, device, precision, batch_size (global), recipe_batch_size, micro_batch, processes,
    processes_here (on this machine), images, epochs, threads, usable_cores, loader_threads, prefetch, renderer,
    channels_last, checkpoint_activations, norm_ranks, prepares_epochs, memory_bytes (free), views ([count, size])."""
    notes: list[str] = field(default_factory=list)
    """What is measured otherwise than the recipe says, in sentences."""
    full: list[Reading] = field(default_factory=list)
    """Seconds of steps on the loader's views, by part."""
    synthetic: list[Reading] = field(default_factory=list)
    """Seconds of steps on synthetic views, by part."""
    synthetic_cpu: list[float] = field(default_factory=list)
    """CPU seconds of the same, of all threads."""
    views: list[float] = field(default_factory=list)
    """Seconds of a batch of views alone."""
    views_cpu: list[float] = field(default_factory=list)
    """CPU seconds of the same, of all threads."""
    alone: list[Reading] = field(default_factory=list)
    """Seconds of loss and optimizer by themselves."""
    supervised: list[float] = field(default_factory=list)
    """Seconds of a step of the yardstick on synthetic views."""
    supervised_batch_size: int = 0
    one_rank: list[float] = field(default_factory=list)
    """Seconds of a step on synthetic views, of this rank's share of the batch without any communication."""
    multiple: float = 0.0
    """Cost of an image in forward and backward passes of supervised training."""
    peak_bytes: int = 0
    """The most that a step has at once, on one rank."""
    process_peak_bytes: int | None = None
    """The most of the process in main memory, ever."""
    first: bool = True
    """Whether this is the first rank's, which is the one to show."""
    operations: list[dict[str, Any]] = field(default_factory=list)
    """With a profile: name, calls, milliseconds and share of the operations that took most."""
