"""Tables of addresses: sent once, sent again when they change, and left alone once a CUDA graph has seen them."""

from __future__ import annotations

import pytest
import torch
from fastssl_kernels.ema import table as module
from fastssl_kernels.ema.table import Table

CPU = torch.device("cpu")


@pytest.fixture
def table(monkeypatch) -> Table:
    """A table whose device is the host: transfers are copies, capture is what the test says it is."""
    monkeypatch.setattr(module, "_pinned", lambda tensor: tensor.clone())
    monkeypatch.setattr(module, "_kept", [])
    return Table(torch.int64)


def test_equal_numbers_are_not_sent_twice(table):
    first = table._send(CPU, [1, 2, 3], capturing=False)
    assert first.tolist() == [1, 2, 3]
    assert table._send(CPU, [1, 2, 3], capturing=False) is first
    second = table._send(CPU, [1, 2, 4], capturing=False)
    assert second.tolist() == [1, 2, 4]
    # The first may still be read by a kernel in flight.
    assert first.tolist() == [1, 2, 3]


def test_a_graph_keeps_what_it_reads(table):
    first = table._send(CPU, [1, 2], capturing=False)
    assert table._send(CPU, [1, 2], capturing=True) is first
    assert any(kept is first for kept in module._kept)
    table._send(CPU, [3, 4], capturing=False)
    assert first.tolist() == [1, 2]


def test_a_transfer_in_a_graph_is_not_taken_for_done(table):
    table._send(CPU, [1, 2], capturing=False)
    captured = table._send(CPU, [5, 6], capturing=True)
    assert captured.tolist() == [5, 6]
    pinned, kept = module._kept
    assert kept is captured
    assert pinned.tolist() == [5, 6]
    # Capturing only recorded the copy: an ordinary step with the same numbers must send them itself.
    ordinary = table._send(CPU, [5, 6], capturing=False)
    assert ordinary is not captured
    table._send(CPU, [7, 8], capturing=True)
    assert pinned.tolist() == [5, 6]
    assert captured.tolist() == [5, 6]


def test_capture_needs_an_ordinary_step_before_it(table):
    with pytest.raises(RuntimeError, match="run one ordinary step before capturing"):
        table._send(CPU, [1], capturing=True)
    table._send(CPU, [1], capturing=False)
    table._send(CPU, [2], capturing=True)
    with pytest.raises(RuntimeError, match="and one between two captures"):
        table._send(CPU, [3], capturing=True)
    table._send(CPU, [1], capturing=False)
    assert table._send(CPU, [3], capturing=True).tolist() == [3]
