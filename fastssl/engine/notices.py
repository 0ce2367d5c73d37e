"""What a run says to whoever watches it, beside its metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..config import Config
from ..data import Source
from ..data.masks import Masks
from ..data.quarantine import Quarantine
from ..methods import Method
from .precision import emulates


def introduce(
    config: Config,
    method: Method,
    source: Source,
    device: torch.device,
    precision: str,
    total_steps: int,
    run_dir: Path,
) -> list[str]:
    """What is trained, on what, and for how long."""
    parameters = sum(p.numel() for p in method.parameters())
    lines = [
        f"{config.method_name} ({config.recipe}): {config.backbone.name} × {config.backbone.width:g}, "
        f"{parameters / 1e6:.1f} M parameters, {device.type}, {precision}",
        f"{len(source):,} images, {total_steps:,} steps of {config.train.batch_size} images × "
        f"{config.augment.views_per_image} views, run directory {run_dir}",
    ]
    if emulates(precision, device):
        lines.append("this CPU only emulates bf16, many times slower: --train.precision auto takes fp32 here")
    return lines


class Unreadable:
    """Names images, and masks, that turn out unreadable while a run goes on; `results` counts them.

    Those of the processes before this one count too: images are in their list, of masks the larger number stands.
    """

    def __init__(
        self, source: Source, masks: Masks | None, results: dict[str, Any], say: Callable[[str], None]
    ) -> None:
        self._source, self._masks, self._results, self._say = source, masks, results, say
        self._images = self._without_mask = 0

    def tell(self, quarantine: Quarantine) -> None:
        """Say what was found since the last call."""
        reasons = list(quarantine.reasons.items())
        for sample, reason in reasons[self._images :]:
            self._say(f"unreadable image replaced: {self._source.name(sample)} ({reason})")
        self._images, self._results["unreadable_images"] = len(reasons), quarantine.known
        if self._masks is not None:
            missing = list(self._masks.missing.items())
            for name, reason in missing[self._without_mask :]:
                self._say(f"background kept: {name} ({reason})")
            self._without_mask = len(missing)
            before = self._results.get("images_without_mask", 0)
            self._results["images_without_mask"] = max(before, len(missing))
