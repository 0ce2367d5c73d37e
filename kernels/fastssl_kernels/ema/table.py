"""Lists of numbers that kernels read from the device: addresses, sizes, options."""

from __future__ import annotations

import torch
from torch import Tensor

Numbers = list[int] | list[float]

# What a CUDA graph may read or write at a replay, long after its step was captured: a few kilobytes a graph.
_kept: list[Tensor] = []


class Table:
    """A list of numbers on a device, sent again only when it changes, and safe to use inside a CUDA graph.

    A transfer that is captured into a graph runs again at every replay, so its two ends are kept for good. Pinned
    memory cannot be allocated during capture: one spare buffer waits from the last ordinary use.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._numbers: Numbers = []
        self._tensor: Tensor | None = None
        self._spare: Tensor | None = None

    def on(self, device: torch.device, numbers: Numbers) -> Tensor:
        """`numbers` as a tensor on `device`.

        Raises:
            RuntimeError: during the capture of a CUDA graph, without an ordinary step of as many numbers before it.
        """
        if device.type == "cpu":
            return torch.tensor(numbers, dtype=self._dtype)
        return self._send(device, numbers, capturing=torch.cuda.is_current_stream_capturing())

    def _send(self, device: torch.device, numbers: Numbers, *, capturing: bool) -> Tensor:
        known = self._tensor is not None and self._tensor.device == device and numbers == self._numbers
        if capturing and not known:
            return self._record(device, numbers)
        if not known:
            self._numbers = numbers
            self._tensor = _pinned(torch.tensor(numbers, dtype=self._dtype)).to(device, non_blocking=True)
        assert self._tensor is not None
        if capturing:
            _kept.append(self._tensor)
        elif self._spare is None or self._spare.numel() < len(numbers):
            self._spare = _pinned(torch.empty(len(numbers), dtype=self._dtype))
        return self._tensor

    def _record(self, device: torch.device, numbers: Numbers) -> Tensor:
        """A transfer for the graph alone: it has not happened when this returns."""
        if self._spare is None or self._spare.numel() < len(numbers):
            raise RuntimeError("run one ordinary step before capturing a CUDA graph, and one between two captures")
        pinned, self._spare = self._spare[: len(numbers)], None
        pinned.copy_(torch.tensor(numbers, dtype=self._dtype))
        tensor = torch.empty(len(numbers), dtype=self._dtype, device=device)
        tensor.copy_(pinned, non_blocking=True)
        _kept.extend((pinned, tensor))
        return tensor


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory()
