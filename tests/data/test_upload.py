"""Batches on their way to a GPU: in order, unchanged, and out of buffers that nobody writes to meanwhile."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from fastssl.data import ArraySource, Augmentation, Batch, ViewLoader, Views, ViewSpec
from fastssl.data.buffers import Buffers
from fastssl.data.upload import IN_FLIGHT, Upload

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Copying:
    """A copy under way, that is done when it is waited for or after a few questions."""

    def __init__(self, patience: int) -> None:
        self.left, self.waited = patience, 0

    def query(self) -> bool:
        self.left -= 1
        return self.left < 0 or self.waited > 0

    def synchronize(self) -> None:
        self.waited += 1


def upload(patience: int) -> tuple[Upload, list[Copying]]:
    made, copies = Upload(torch.device("cpu")), []

    def copy(host: Views) -> tuple[Views, Copying]:
        copies.append(Copying(patience))
        return Views(tuple(group.clone() for group in host.groups), host.counts), copies[-1]

    made._copy = copy  # type: ignore[method-assign]
    return made, copies


@pytest.mark.parametrize("patience", [0, 1, 10**9])
def test_order_and_content(patience):
    moving, copies = upload(patience)
    given = [Batch(Views((torch.full((2, 3), float(i)),), (1,)), torch.tensor([i]), None) for i in range(7)]
    moved = list(moving.batches(given))
    assert [b.ids.item() for b in moved] == list(range(7))
    assert all(torch.equal(a.views.groups[0], b.views.groups[0]) for a, b in zip(moved, given, strict=True))
    assert len(moving._kept) == 0, "at the end all buffers are free"
    assert all(copy.waited == 1 for copy in copies)


def test_a_buffer_is_not_written_to_before_its_copy_is_done():
    """The renderer's own pool of buffers, and copies that are never done by themselves."""
    buffers, under_way = Buffers(), []
    moving, copies = upload(10**9)
    addresses: list[int] = []

    def batches():
        for i in range(8):
            group = buffers.empty(4, 5)
            waiting = [a for a, copy in zip(addresses, copies, strict=True) if not copy.waited]
            assert group.data_ptr() not in waiting, "a copy still reads from it"
            under_way.append(len(waiting))
            addresses.append(group.data_ptr())
            yield Batch(Views((group,), (1,)), torch.tensor([i]), None)
            del group

    for _ in moving.batches(batches()):
        assert sum(not copy.waited for copy in copies) <= IN_FLIGHT
    assert max(under_way) == IN_FLIGHT
    assert len(set(addresses)) <= IN_FLIGHT + 1
    assert max(Counter(addresses).values()) > 1, "they are used again"


def test_pinned_buffers_are_asked_for(monkeypatch):
    asked = []
    real = torch.empty

    def empty(*size, pin_memory=False, **options):
        asked.append(pin_memory)
        return real(*size, **options)

    monkeypatch.setattr(torch, "empty", empty)
    Buffers(pin=True).empty(2, 3)
    Buffers().empty(2, 3)
    assert asked == [True, False]


def loader(**options) -> ViewLoader:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 24, 24, 3), dtype=np.uint8)
    recipe = Augmentation((ViewSpec(size=16, count=2), ViewSpec(size=8)))
    return ViewLoader(ArraySource(pixels, np.arange(40) % 3), recipe, batch_size=8, seed=0, prefetch=1, **options)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("dtype", "channels_last"), [(torch.float32, False), (torch.bfloat16, True)])
def test_on_a_gpu_the_views_are_those_of_the_cpu(dtype, channels_last):
    device = torch.device("cuda", 0)
    plain, pinned = loader(), loader(pin=True)
    moving = Upload(device, dtype=dtype, channels_last=channels_last)
    for epoch in range(3):
        busy = torch.randn(2048, 2048, device=device)
        seen = []
        for batch in moving.batches(pinned.epoch(epoch)):
            for _ in range(5):
                busy = (busy @ busy).clamp(-1, 1)  # the step is behind
            assert all(group.device == device and group.dtype == dtype for group in batch.views.groups)
            seen.append([group.float().cpu() for group in batch.views.groups])
        for groups, batch in zip(seen, plain.epoch(epoch), strict=True):
            assert all(torch.equal(a, b.to(dtype).float()) for a, b in zip(groups, batch.views.groups, strict=True))
    for each in (plain, pinned):
        each.close()
