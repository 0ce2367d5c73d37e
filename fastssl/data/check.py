"""Decode everything once, before a run does: what is bad, how large the images are, how many a class has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from .decode import DecoderKind
from .quarantine import Quarantine
from .reader import Reader
from .sources import ArraySource, Source

_BATCH = 64
_FORMATS = {
    b"\xff\xd8": "JPEG",
    b"\x89PNG": "PNG",
    b"RIFF": "WebP",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}


@dataclass
class DataCheck:
    """What one pass over a source found. Heights and widths are those after EXIF rotation, 0 where unreadable."""

    heights: NDArray[np.int64]
    widths: NDArray[np.int64]
    sizes: NDArray[np.int64]
    """Bytes of each file."""
    formats: Counter[str]
    """Images by what their first bytes say."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason) of the unreadable ones."""
    images_a_class: dict[str, int] = field(default_factory=dict)
    """Empty without labels."""

    @property
    def readable(self) -> NDArray[np.bool_]:
        return self.heights > 0


class _Observed:
    """A source that notes the size and the kind of what it reads."""

    def __init__(self, source: Source) -> None:
        self._source, self.labels, self.classes = source, source.labels, source.classes
        self.sizes = np.zeros(len(source), dtype=np.int64)
        self.formats = np.full(len(source), "other", dtype="<U8")

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int) -> bytes:
        data = self._source.read(index)
        self.sizes[index] = len(data)
        self.formats[index] = next((kind for magic, kind in _FORMATS.items() if data.startswith(magic)), "other")
        return data

    def name(self, index: int) -> str:
        return self._source.name(index)


def check_data(
    source: Source,
    *,
    decoder: DecoderKind = "auto",
    threads: int = 2,
    progress: Callable[[int, int], None] = lambda done, bad: None,
) -> DataCheck:
    """Read and decode every image of a source.

    Args:
        source: any source.
        decoder, threads: as for `ViewLoader`.
        progress: called with the numbers of images done and of bad ones among them.
    """
    n = len(source)
    if isinstance(source, ArraySource):
        side = np.full((2, n), np.array(source.images.shape[1:3])[:, None])
        found = DataCheck(side[0], side[1], np.full(n, source.images[0].nbytes), Counter(pixels=n))
        progress(n, 0)
    else:
        observed = _Observed(source)
        quarantine = Quarantine(n, max_bad_fraction=1.0)
        reader = Reader(observed, quarantine, decoder, threads, torch.device("cpu"))
        found = DataCheck(np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64), observed.sizes, Counter())
        try:
            for start in range(0, n, _BATCH):
                ids = np.arange(start, min(start + _BATCH, n))
                for i, image in zip(ids, reader.fetch(ids), strict=True):
                    if image is not None:
                        found.heights[i], found.widths[i] = image.shape[:2]
                progress(int(ids[-1]) + 1, len(quarantine))
        finally:
            reader.close()
        found.formats = Counter(observed.formats.tolist())
        found.bad = [(source.name(i), quarantine.reasons[i]) for i in sorted(quarantine.reasons)]
    if source.labels is not None:
        counts = np.bincount(source.labels, minlength=len(source.classes or ()))
        names = source.classes or tuple(str(number) for number in range(len(counts)))
        found.images_a_class = dict(zip(names, counts.tolist(), strict=True))
    return found


def describe(split: str, found: DataCheck) -> list[str]:
    """Lines for a person; the bad images are not among them."""
    good = found.readable
    lines = [f"{split}: {len(good):,} images, {int((~good).sum()):,} unreadable"]
    if found.images_a_class:
        ordered = sorted(found.images_a_class.items(), key=lambda item: (item[1], item[0]))
        (fewest, least), (most, greatest) = ordered[0], ordered[-1]
        spread = f"{least:,} ({fewest}) to {greatest:,} ({most}) images each"
        lines.append(f"  classes    {len(ordered):,}, {spread}")
    if good.any():
        for name, values in (("width", found.widths[good]), ("height", found.heights[good])):
            low, middle, high = np.percentile(values, (0, 50, 100)).astype(int)
            lines.append(f"  {name:<10} {low} to {high} pixels, median {middle}")
    total, median = found.sizes.sum() / 1e6, np.median(found.sizes) / 1e3
    lines.append(f"  bytes      {total:,.1f} MB, median {median:,.1f} kB an image")
    lines.append("  formats    " + ", ".join(f"{kind} {count:,}" for kind, count in found.formats.most_common()))
    return lines
