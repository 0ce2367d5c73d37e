"""The back ends of the data path that are here, and epochs of them."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from ..data import native, triton_render
from ..data.dali_graph import require
from ..data.decode import DecoderKind
from ..data.loader import ViewLoader
from ..data.sources import Source
from ..data.views import Augmentation
from ..errors import UserError

WARM_STEPS = 2
"""Batches that each subject makes before it is timed. (All files have been read once by then.)"""
SEED = 0


def gaussian(augmentation: Augmentation) -> Augmentation:
    """The recipe with a Gaussian of the same σ instead of every box blur, which DALI does not have."""
    return replace(augmentation, views=tuple(replace(spec, blur_kind="gaussian") for spec in augmentation.views))


def drawn_by(name: str, augmentation: Augmentation) -> Augmentation:
    """The views that a back end draws of a recipe."""
    return gaussian(augmentation) if name == "dali" else augmentation


def backends(augmentation: Augmentation) -> dict[str, dict[str, Any]]:
    """Every back end by its name: why it is not available here, or None; its device; a note on its views."""
    no_dali = None
    try:
        require("--loader.renderer")
    except UserError:
        no_dali = "nvidia-dali is not installed"
    no_gpu = None if torch.cuda.is_available() else "there is no GPU"
    why = {
        "native": None if native.available() else "it was not built: no C compiler at installation",
        "torch": None,
        "dali": no_dali,
        "triton": no_gpu or (None if triton_render.available() else "triton is not installed"),
    }
    boxed = any(spec.blur > 0 and spec.blur_kind == "pil" for spec in augmentation.views)
    note = {"dali": "with Gaussian instead of box blur" if boxed else None}
    return {
        name: {
            "unavailable": reason,
            "note": note.get(name),
            "device": "cuda" if name == "triton" else "cpu",
            "images_per_second": [],
            "cpu_ms": [],
        }
        for name, reason in why.items()
    }


def decoders(chosen: DecoderKind) -> tuple[str, ...]:
    """Those of this machine, first the one that `chosen` means."""
    try:
        require("--decoder")
    except UserError:
        if chosen == "dali":
            raise
        return ("torchvision",)
    return ("torchvision", "dali") if chosen == "torchvision" else ("dali", "torchvision")


class Epochs:
    """Epochs of one back end, as training takes them: a background thread makes batches ahead.

    Args:
        name: one of `backends`.
        source: encoded images.
        augmentation: the recipe's views.
        batch_size, decoder, threads: as for `ViewLoader`.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        augmentation: Augmentation,
        *,
        batch_size: int,
        decoder: DecoderKind,
        threads: int,
    ) -> None:
        self._device = torch.device("cuda" if name == "triton" else "cpu")
        self._loader = ViewLoader(
            source,
            drawn_by(name, augmentation),
            batch_size=batch_size,
            seed=SEED,
            decoder=decoder,
            threads=threads,
            device=self._device,
            renderer=name,  # type: ignore[arg-type]
        )
        for step in range(min(WARM_STEPS, self._loader.steps_per_epoch)):
            self._loader.batch(0, step)

    def run(self, epoch: int, entry: dict[str, Any]) -> None:
        """Add the figures of one epoch to an entry of `fastssl.bench.data.Result.backends`."""
        begin, cpu = time.perf_counter(), time.process_time()
        images = sum(batch.views.batch_size for batch in self._loader.epoch(epoch))
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        entry["images_per_second"].append(images / (time.perf_counter() - begin))
        entry["cpu_ms"].append(1e3 * (time.process_time() - cpu) / images)

    def close(self) -> None:
        self._loader.close()
