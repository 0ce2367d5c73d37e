"""The device of this suite, and what its tests need of one.

    pytest -m gpu tests/gpu                             # on a machine with a GPU
    FASTSSL_GPU_TESTS_ON=cpu pytest -m gpu tests/gpu    # a rehearsal: the same bodies on the CPU

On a CPU nothing can wait for a device and there are no graphs: a step is watched operation by operation instead, and a
replay runs it again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest
import torch
from no_reading import NoReading
from torch.utils._pytree import tree_leaves

from fastssl.bench.memory import LiveBytes

CHOICE = "FASTSSL_GPU_TESTS_ON"
NAME = os.environ.get(CHOICE, "cuda")
if NAME not in ("cuda", "cpu"):
    raise pytest.UsageError(f"{CHOICE} must be cuda or cpu, got {NAME!r}")
ON_GPU = NAME == "cuda"
DEVICE = torch.device(NAME)

large = pytest.mark.skipif(not ON_GPU, reason="a size for GPUs, left out of the rehearsal on a CPU")
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="two devices meet, left out of the rehearsal on a CPU")


def missing() -> str | None:
    """What this machine lacks to run the suite; None where it can."""
    if not ON_GPU or torch.cuda.is_available():
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return "needs a CUDA device: this torch was built without CUDA"
    return "needs a CUDA device: torch finds none, as there is no GPU or no driver for it"


@contextlib.contextmanager
def no_synchronisation() -> Iterator[None]:
    """An error where the host would wait for the device."""
    if not ON_GPU:
        with NoReading():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def captured(step: Callable[[], object]) -> tuple[object, Callable[[], None]]:
    """`step` in a CUDA graph, after three ordinary calls: its result, and a replay that renews the result in place."""
    if not ON_GPU:
        held = step()

        def again() -> None:
            with torch.no_grad():
                for old, new in zip(_tensors(held), _tensors(_with_grad(step)), strict=True):
                    old.copy_(new)

        return held, again
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    return result, graph.replay


def _tensors(result: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def _with_grad(step: Callable[[], object]) -> object:
    with torch.enable_grad():
        return step()


def peak_bytes(call: Callable[[], object], *there: torch.Tensor) -> int:
    """The most bytes that `call` has at once beyond what was `there` before."""
    if not ON_GPU:
        with LiveBytes(there) as live:
            call()
        return live.peak
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
