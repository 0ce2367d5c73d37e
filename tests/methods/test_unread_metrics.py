"""A step whose metrics nobody reads has the loss and the gradients of one whose metrics are read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from every_method import make, random_views, state

from fastssl.methods import METHODS


@pytest.mark.parametrize("name", METHODS)
def test_metrics_change_nothing(name):
    found = []
    for logged in (True, False):
        method = make(name)
        step = replace(state(0), logged=logged)
        losses = method.loss(random_views(0), step)
        losses.total.backward()
        method.after_backward(step)
        method.after_step(step)
        gradients = [p.grad for p in method.parameters() if p.grad is not None]
        found.append((losses, gradients, method.state_dict()))
    read, unread = found
    assert read[0].metrics
    assert unread[0].metrics.keys() <= read[0].metrics.keys()
    # fp32 sums, perhaps in another order.
    torch.testing.assert_close(unread[0].total, read[0].total, rtol=1e-6, atol=0)
    for a, b in zip(unread[1], read[1], strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()
    for key, value in read[2].items():
        torch.testing.assert_close(unread[2][key], value, rtol=1e-5, atol=1e-6)
