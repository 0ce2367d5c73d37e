"""Where the time of a back end goes: cumulative variants of its work on the same batches, and their differences."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.decode import Decoder, DecoderKind, image_size, make_decoder
from ..data.loader import ViewLoader
from ..data.order import batch_ids
from ..data.params import ViewParams, sample_params
from ..data.quarantine import Quarantine
from ..data.reader import Reader, RendererKind, image_sizes
from ..data.sources import Source
from ..data.views import Augmentation, ViewSpec
from ..errors import UserError

STAGES = ("read", "check markers", "decode", "resize", "colour", "blur", "other")
"""In their order; what is drawn up to one contains all before it. "other" is drawing the parameters, solarize, invert,
normalise, and the model's dtype and layout."""

RENDERED = STAGES[3:]
WHOLE = "whole"
_NO_MEAN, _NO_STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds of this process on all cores together; where a GPU works, seconds on the wall, when it is done.

    CPU time is not disturbed by other processes that want the same cores.
    """
    if device.type == "cpu":
        return time.process_time

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def variants(params: ViewParams) -> dict[str, ViewParams]:
    """The views' parameters with all that follows a stage switched off, and as they are under "other".

    A stage that no view of these has is left out, as it takes no time.
    """
    no = np.zeros(len(params), dtype=bool)
    plain = replace(params, jitter=no, gray=no, sigma=np.zeros_like(params.sigma), solarize=no, invert=no)
    found = {"resize": plain}
    if (params.jitter | params.gray).any():
        found["colour"] = replace(plain, jitter=params.jitter, gray=params.gray)
    if params.sigma.any():
        found["blur"] = replace(params, solarize=no, invert=no)
    return {**found, "other": params}


class Stages:
    """Times the stages of one back end.

    Args:
        source: encoded images, all readable.
        augmentation: the recipe's views.
        batch_size: images a batch; the rest of an epoch is left out.
        seed: of the views.
        decoder, threads, device, renderer: as for `ViewLoader`.
    """

    def __init__(
        self,
        source: Source,
        augmentation: Augmentation,
        *,
        batch_size: int,
        seed: int,
        decoder: DecoderKind,
        threads: int,
        device: torch.device,
        renderer: RendererKind,
    ) -> None:
        self._source, self._augmentation = source, augmentation
        self._batch_size, self._seed, self._device = batch_size, seed, device
        self._clock = clock_of(device)
        self._loader = ViewLoader(
            source,
            augmentation,
            batch_size=batch_size,
            seed=seed,
            decoder=decoder,
            threads=threads,
            device=device,
            prefetch=0,
            renderer=renderer,
        )
        self._reader = Reader(source, Quarantine(len(source)), decoder, threads, device, renderer)
        self._decoder: Decoder = make_decoder(decoder, device=device, threads=threads)

    def run(self, epoch: int, steps: int | None = None) -> dict[str, float]:
        """Milliseconds an image of each of `STAGES` and of the `WHOLE`, over an epoch or its first `steps` batches.

        They are milliseconds of one core (on a GPU: of the wall). The whole is the loader's own work on the same
        batches: what the stages leave of it is their error. A difference below 0 counts as 0.

        Raises:
            UserError: an image that could be read before cannot any more.
        """
        steps = min(steps or self._loader.steps_per_epoch, self._loader.steps_per_epoch)
        spent = dict.fromkeys((*STAGES, "draw", WHOLE), 0.0)
        for step in range(steps):
            with self._timed(WHOLE, spent):
                self._loader.batch(epoch, step)
            self._batch(epoch, step, spent)
        stage = {name: spent[name] for name in ("read", "check markers")}
        stage["decode"] = max(spent["decode"] - spent["check markers"], 0.0)  # decoding checks the markers
        stage["resize"] = spent["resize"]
        for before, name in pairwise(RENDERED):
            stage[name] = max(spent[name] - spent[before], 0.0)
        stage["other"] += spent["draw"]
        stage[WHOLE] = spent[WHOLE]
        return {name: 1e3 * seconds / (steps * self._batch_size) for name, seconds in stage.items()}

    def _batch(self, epoch: int, step: int, spent: dict[str, float]) -> None:
        """Add the seconds of one batch: for what decodes and what renders, those of each cumulative variant."""
        n, size = len(self._source), self._batch_size
        ids = batch_ids(step, n=n, batch_size=size, seed=self._seed, epoch=epoch, rank=0, world=1)
        with self._timed("read", spent):
            encoded = [self._source.read(i) for i in ids.tolist()]
        with self._timed("check markers", spent):
            for data in encoded:
                image_size(data)
        with self._timed("decode", spent):
            decoded = self._decoder.decode(encoded)
        if decoded.failures:
            name = self._source.name(int(ids[next(iter(decoded.failures))]))
            raise UserError(f"{name} could be decoded before and cannot any more: measure data that nobody changes")
        images, view = decoded.images, 0
        for spec in self._augmentation.views:
            with self._timed("draw", spent):
                params = self._draw(spec, view, images, ids, epoch)
            self._render(images, params, spec, spent)
            view += spec.count

    def _draw(self, spec: ViewSpec, first: int, images: Any, ids: NDArray[np.int64], epoch: int) -> ViewParams:
        heights, widths = image_sizes(images)
        options: dict[str, Any] = {"seed": self._seed, "epoch": epoch, "samples": ids}
        options |= {"heights": heights, "widths": widths}
        return ViewParams.concatenate(
            [sample_params(spec, view=view, **options) for view in range(first, first + spec.count)]
        )

    def _render(self, images: Any, params: ViewParams, spec: ViewSpec, spent: dict[str, float]) -> None:
        known, taken = variants(params), dict.fromkeys(RENDERED, 0.0)
        until = 0.0
        for stage in RENDERED:
            if stage in known:  # else the time stays what it was
                norm = (self._augmentation.mean, self._augmentation.std) if stage == "other" else (_NO_MEAN, _NO_STD)
                with self._timed(stage, taken):
                    self._reader.render(images, known[stage], spec, *norm)
                until = taken[stage]
            spent[stage] += until

    @contextmanager
    def _timed(self, stage: str, spent: dict[str, float]) -> Iterator[None]:
        begin = self._clock()
        yield
        spent[stage] += self._clock() - begin

    def close(self) -> None:
        self._loader.close()
        self._reader.close()
        self._decoder.close()
