"""The views of a run, epoch after epoch, where and in the form that the networks read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from ..config import Config
from ..data import Batch, Source, ViewLoader, resolve_renderer
from ..data.masks import Masks
from ..data.quarantine import Quarantine
from ..data.upload import Upload
from ..data.views import Views
from .precision import Precision, view_form
from .ranks import Ranks


class Feed:
    """Makes views on the device that trains, or on the CPU, from where they are copied to a GPU behind the step before.

    Args:
        config: of the run.
        source: the training images.
        masks: their foregrounds, if views lose their background.
        device: that trains.
        precision: of the networks.
        ranks: this process among those of the run: it gets its slice of each batch.
    """

    def __init__(
        self,
        config: Config,
        source: Source,
        masks: Masks | None,
        device: torch.device,
        precision: Precision,
        ranks: Ranks,
    ) -> None:
        self._config, self._source, self._masks, self._ranks = config, source, masks, ranks
        self._device, self._precision = device, precision
        self._view_device = torch.device("cpu") if config.loader.device == "cpu" else device
        self.renderer = resolve_renderer(config.loader.renderer, self._view_device)
        prefetch = config.loader.prefetch
        if prefetch is None:
            prefetch = 0 if device.type == "cpu" else 2
        self.prefetch = prefetch
        """Batches made ahead of the step."""
        self._loader: ViewLoader | None = None

    def open(self, run_dir: Path) -> None:
        """Start the loader, which names unreadable images in `run_dir`."""
        config = self._config
        # In the networks' form, unless they are still to be copied to a GPU.
        dtype, channels_last = self._form(self._view_device)
        self._loader = ViewLoader(
            self._source,
            config.augment,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            rank=self._ranks.rank,
            world=self._ranks.world,
            decoder=config.loader.decoder,
            renderer=self.renderer,
            threads=config.loader.threads,
            prefetch=self.prefetch,
            device=str(self._view_device),
            quarantine=run_dir / "quarantine.json",
            max_bad_fraction=config.loader.max_bad_fraction,
            last=config.loader.last,
            dtype=dtype,
            channels_last=channels_last,
            hw_decoder_load=config.loader.hw_decoder_load,
            pin=self._view_device != self._device,
            masks=self._masks,
        )

    @property
    def quarantine(self) -> Quarantine:
        return self._opened().quarantine

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `start` on."""
        batches = self._opened().epoch(epoch, start_step=start)
        if self._view_device == self._device:
            return batches
        dtype, channels_last = self._form(self._device)
        return Upload(self._device, dtype=dtype, channels_last=channels_last).batches(batches)

    def views(self, batch: Batch) -> Views:
        """The batch's views, with ids and labels, on the device that trains."""
        return replace(batch.views, ids=batch.ids, labels=batch.labels).to(self._device, non_blocking=True)

    def close(self) -> None:
        self._opened().close()

    def _form(self, device: torch.device) -> tuple[torch.dtype, bool]:
        return view_form(device, self._precision, channels_last=self._config.train.channels_last)

    def _opened(self) -> ViewLoader:
        assert self._loader is not None
        return self._loader
