"""The floor of the data path: the least time in which views can be made with a given decoder."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.decode import Decoder
from ..data.views import Augmentation


@dataclass(frozen=True)
class FloorTime:
    """Seconds on the wall, and of CPU time on all cores together, for so many images."""

    images: int
    decode: float
    decode_cpu: float
    copy: float
    copy_cpu: float


class Floor:
    """Decoding, then one copy of the views' floats, shared among torch's threads: no renderer can do with less.

    Args:
        decoder: what decodes; its check of the markers counts.
        augmentation: the views, for the number of their floats.
        batch_size: most images a batch.
    """

    def __init__(self, decoder: Decoder, augmentation: Augmentation, batch_size: int) -> None:
        floats = sum(spec.count * 3 * spec.size * spec.size for spec in augmentation.views)
        self._decoder = decoder
        self._from, self._to = torch.ones(batch_size, floats), torch.empty(batch_size, floats)

    def run(self, batches: Iterable[Sequence[bytes]]) -> FloorTime:
        """Time one pass over encoded images. Getting the next batch, from a disk perhaps, does not count."""
        images, spent = 0, np.zeros((2, 2))
        for encoded in batches:
            begin = _now()
            self._decoder.decode(encoded)
            middle = _now()
            self._to[: len(encoded)].copy_(self._from[: len(encoded)])
            spent += middle - begin, _now() - middle
            images += len(encoded)
        (decode, decode_cpu), (copy, copy_cpu) = spent.tolist()
        return FloorTime(images, decode, decode_cpu, copy, copy_cpu)


def _now() -> NDArray[np.float64]:
    return np.array((time.perf_counter(), time.process_time()))
