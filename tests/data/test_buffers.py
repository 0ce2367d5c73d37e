"""Buffers are used again when they are idle, and never before."""

import torch

from fastssl.data.buffers import MOST_KEPT, Buffers


def test_idle_memory_is_used_again():
    buffers = Buffers()
    first = buffers.empty(4, 5)
    address = first.data_ptr()
    assert first.shape == (4, 5)
    assert buffers.empty(4, 5).data_ptr() != address
    del first
    assert buffers.empty(2, 10).data_ptr() == address


def test_whatever_looks_at_a_buffer_keeps_it():
    """A view of it, a part of it, NumPy, a graph that will need it."""
    layer = torch.nn.Linear(5, 3)
    keepers = (
        lambda x: x[1:],
        lambda x: x.chunk(2),
        lambda x: x.numpy(),
        lambda x: layer(x),
        lambda x: torch.utils.dlpack.to_dlpack(x),
        lambda x: {"deep": [x.T]},
    )
    for keep in keepers:
        buffers = Buffers()
        kept = buffers.empty(4, 5)
        kept.fill_(7)
        address = kept.data_ptr()
        held = keep(kept)
        del kept
        other = buffers.empty(4, 5)
        assert other.data_ptr() != address
        del held, other


def test_collected_batches_are_all_different():
    buffers = Buffers()
    collected = [buffers.empty(3) for _ in range(3 * MOST_KEPT)]
    assert len({x.data_ptr() for x in collected}) == 3 * MOST_KEPT
    assert len(buffers._kept[3]) == MOST_KEPT


def test_torch_that_does_not_tell(monkeypatch):
    monkeypatch.delattr(torch._C, "_storage_Use_Count")
    buffers = Buffers()
    buffers.empty(3)
    assert buffers._kept[3] == []
