"""Views made on the CPU, on their way to a GPU: copied while the network is busy with the batch before.

The renderer writes into page-locked memory (`ViewLoader(pin=True)`), a copy on a stream of its own reads from there,
and the stream of the training step waits for that copy on the device; the CPU waits for nothing, unless two copies are
under way. A host buffer is kept until its copy is done, so that the renderer cannot write into it before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Protocol

import torch

from .loader import Batch
from .views import Views

IN_FLIGHT = 2
"""Batches whose copies may be under way: one is copied while the next is being made."""


class Done(Protocol):
    """What tells that a copy is done: a CUDA event."""

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...


class Upload:
    """Moves batches to a CUDA device, in order.

    Args:
        device: where they are wanted.
        dtype, channels_last: the form that views get there; they cross the bus as they were made.
    """

    def __init__(
        self, device: torch.device, *, dtype: torch.dtype = torch.float32, channels_last: bool = False
    ) -> None:
        self._device, self._dtype = device, dtype
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._stream: torch.cuda.Stream | None = None
        self._kept: deque[tuple[Done, Views]] = deque()

    def batches(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches, their views on the device, valid on its current stream; ids and labels stay on the CPU."""
        for batch in batches:
            self._release(IN_FLIGHT - 1)
            host = batch.views
            views, done = self._copy(host)
            self._kept.append((done, host))
            moved = replace(batch, views=views)
            del batch, host, views
            yield moved
        self._release(0)

    def _release(self, most: int) -> None:
        """Let go of host buffers whose copies are done, and wait for the oldest while more than `most` are not."""
        while self._kept and (len(self._kept) > most or self._kept[0][0].query()):
            self._kept[0][0].synchronize()
            self._kept.popleft()

    def _copy(self, host: Views) -> tuple[Views, Done]:
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        user = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            groups = []
            for group in host.groups:
                pinned = group if group.is_pinned() else group.pin_memory()
                moved = pinned.to(self._device, non_blocking=True)
                # torch's pinned allocator itself keeps `pinned` until the copy is done, where it is not the caller's.
                groups.append(moved.to(self._dtype, memory_format=self._layout))
            done = torch.cuda.Event()
            done.record(self._stream)
        user.wait_event(done)
        for group in groups:
            group.record_stream(user)  # they were allocated for the copying stream
        return replace(host, groups=tuple(groups)), done
