"""Part of a source."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .sources import ArraySource, Source


def subset(source: Source, ids: ArrayLike) -> Source:
    """The samples `ids` of `source`, renumbered from 0.

    Raises:
        IndexError: an id that the source does not have.
    """
    chosen = np.asarray(ids, dtype=np.int64)
    if chosen.size and not (chosen.min() >= 0 and chosen.max() < len(source)):
        raise IndexError(f"ids must be in [0, {len(source)}), got {chosen.min()} … {chosen.max()}")
    if isinstance(source, ArraySource) and chosen.size:
        labels = None if source.labels is None else source.labels[chosen]
        return ArraySource(source.images[chosen], labels, source.classes)
    return _Subset(source, chosen)


class _Subset:
    def __init__(self, source: Source, ids: NDArray[np.int64]) -> None:
        self._source, self._ids = source, ids
        self.labels = None if source.labels is None else source.labels[self._ids]
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, index: int) -> bytes:
        return self._source.read(int(self._ids[index]))

    def name(self, index: int) -> str:
        return self._source.name(int(self._ids[index]))
