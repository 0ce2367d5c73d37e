"""The images of evaluation: one central view of each, in the order of the source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError
from .decode import DecoderKind
from .params import center_params
from .quarantine import Quarantine
from .reader import Reader, RendererKind, image_sizes
from .sources import Source
from .views import CenterCrop, ViewSpec


def evaluation_batches(
    source: Source,
    crop: CenterCrop,
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
    std: tuple[float, float, float] = (1.0, 1.0, 1.0),
    *,
    batch_size: int,
    decoder: DecoderKind = "auto",
    threads: int = 2,
    device: torch.device | str = "cpu",
    limit: int | None = None,
    quarantine: Path | None = None,
    max_bad_fraction: float = 0.01,
    renderer: RendererKind = "auto",
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]]:
    """The center views of a source, in its order; unreadable images are left out (and recorded).

    Args:
        source, decoder, threads, device, quarantine, max_bad_fraction, renderer: as for `ViewLoader`.
        crop: the view.
        mean, std: normalisation.
        batch_size: images a batch; the last batch may be smaller.
        limit: only this many images, spread evenly over the source (its classes lie side by side), or None for all.

    Yields:
        images float32 `[B, 3, S, S]`, labels int64 `[B]` or None, ids int64 `[B]`.

    Raises:
        UserError: too many unreadable images.
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, got {limit}")
    n = len(source)
    ids = np.arange(n) if limit is None or limit >= n else np.arange(limit) * n // limit
    spec = ViewSpec(size=crop.size, interpolation=crop.interpolation)
    reader = Reader(
        source,
        Quarantine(n, max_bad_fraction=max_bad_fraction, path=quarantine),
        decoder,
        threads,
        torch.device(device),
        renderer,
    )
    try:
        for start in range(0, len(ids), batch_size):
            part = ids[start : start + batch_size]
            images = reader.fetch(part)
            if not isinstance(images, torch.Tensor):
                part = part[[image is not None for image in images]]
                images = [image for image in images if image is not None]
            if not len(part):
                continue
            views = reader.render(images, center_params(crop, *image_sizes(images)), spec, mean, std)  # type: ignore[arg-type]
            labels = None if source.labels is None else torch.from_numpy(source.labels[part])
            yield views, labels, torch.from_numpy(part)
    finally:
        reader.close()
