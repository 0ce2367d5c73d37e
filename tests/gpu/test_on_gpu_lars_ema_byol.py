"""LARS, the parameter average and BYOL's loss on a GPU: the definitions in float64, no synchronisation, a graph."""

from __future__ import annotations

import copy

import pytest
import torch
from fastssl_kernels.byol import byol_loss, byol_reference
from fastssl_kernels.ema import ema_reference, ema_update_
from fastssl_kernels.lars import LARS, exclude_from_adaptation, lars_reference
from laws import gradient_of, relative
from on_device import DEVICE, captured, large, no_synchronisation
from torch import nn

pytestmark = pytest.mark.gpu
# As on the CPU: of one step, whose norms and update round at 2^-24.
STEP = 5e-7
AVERAGE = {torch.float32: 2e-7, torch.float16: 2**-11 + 1e-6, torch.bfloat16: 2**-8 + 1e-6}
BYOL = {torch.float32: 2e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3}


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 67, 3), nn.BatchNorm2d(67), nn.Conv2d(67, 129, 3), nn.Linear(1111, 1003))
    return net.to(DEVICE, memory_format=torch.channels_last)


def set_gradients(net: nn.Module, step: int) -> None:
    torch.manual_seed(100 + step)
    for p in net.parameters():
        g = torch.randn(p.shape)
        p.grad = g.to(p.device).contiguous(
            memory_format=torch.channels_last if p.ndim == 4 else torch.contiguous_format
        )


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("variant", ["A", "B", "C"])
def test_lars_with_average_and_copies(variant, nesterov):
    net = network()
    online = list(net.parameters())
    targets, copies = [torch.ones_like(p) for p in online], [p.detach().bfloat16() for p in online]
    groups = exclude_from_adaptation(net, weight_decay=0.01)
    pairs = {"ema": (targets, online), "copies": (copies, online)}
    optimizer = LARS(groups, 0.5, variant=variant, nesterov=nesterov, **pairs)
    optimizer.found_inf = torch.zeros((), device=DEVICE)
    optimizer.ema_momentum = 0.9
    weights = [p.detach().double() for p in online]
    buffers, averages = [torch.zeros_like(w) for w in weights], [torch.ones_like(w) for w in weights]
    for step in range(4):
        set_gradients(net, step)
        lr = 0.5 / (step + 1)
        for group in optimizer.param_groups:
            group["lr"] = lr
        with no_synchronisation():
            optimizer.step()
        for i, p in enumerate(online):
            adapt = p.ndim > 1
            options = {"lr": lr, "weight_decay": 0.01 * adapt, "variant": variant, "nesterov": nesterov, "adapt": adapt}
            weights[i], buffers[i] = lars_reference(weights[i], p.grad.double(), buffers[i], **options)
            averages[i] = ema_reference(averages[i], weights[i], 0.9)
    for p, kept, target, w, average in zip(online, copies, targets, weights, averages, strict=True):
        assert relative(p.detach(), w) <= 4 * STEP
        assert relative(target, average) <= 4 * STEP
        assert torch.equal(kept, p.detach().bfloat16())


def test_lars_in_a_graph_follows_device_scalars():
    plain, recorded = network(), network()
    lr = torch.tensor(0.5, device=DEVICE)
    for net in (plain, recorded):
        set_gradients(net, 0)
    grads = [p.grad for p in recorded.parameters()]
    ordinary = LARS(exclude_from_adaptation(plain), 0.5)
    replayed = LARS(exclude_from_adaptation(recorded), lr)

    def step() -> None:
        # As a captured backward pass does: gradients at addresses that no ordinary step has seen.
        for p, g in zip(recorded.parameters(), grads, strict=True):
            p.grad = g * 1.0
        replayed.step()

    begin = copy.deepcopy(recorded.state_dict())
    _, replay = captured(step)
    with torch.no_grad():  # back to the beginning, in place
        for name, value in recorded.state_dict().items():
            value.copy_(begin[name])
        for state in replayed.state.values():
            state["momentum_buffer"].zero_()
    for number in range(4):
        lr.fill_(0.5 / (number + 1))
        for group in ordinary.param_groups:
            group["lr"] = 0.5 / (number + 1)
        set_gradients(plain, number)
        for g, p in zip(grads, plain.parameters(), strict=True):
            g.copy_(p.grad)
        ordinary.step()
        replay()
    for p, q in zip(plain.parameters(), recorded.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad):
    net = network()
    optimizer = LARS(exclude_from_adaptation(net), 0.5)
    optimizer.found_inf = torch.zeros((), device=DEVICE)
    set_gradients(net, 0)
    optimizer.step()
    before = copy.deepcopy(net.state_dict())
    set_gradients(net, 1)
    next(net.parameters()).grad[-1, -1, -1, -1].fill_(bad)
    with no_synchronisation():
        optimizer.step()
    assert optimizer.found_inf.item() == 1
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("scalar", [False, True])
def test_the_average(scalar):
    shapes, kinds = [(), (0,), (3,), (1000, 1003), (65, 7, 3, 3)], list(AVERAGE)
    targets = [torch.randn(s, device=DEVICE).to(k) for s in shapes for k in kinds]
    onlines = [torch.randn(s, device=DEVICE) for s in shapes for _ in kinds]
    expected = [ema_reference(t.double(), o, 0.99) for t, o in zip(targets, onlines, strict=True)]
    momentum = torch.tensor(0.99, device=DEVICE, dtype=torch.float64) if scalar else 0.99
    with no_synchronisation():
        ema_update_(targets, onlines, momentum)
    for t, exact in zip(targets, expected, strict=True):
        torch.testing.assert_close(t.double(), exact, rtol=AVERAGE[t.dtype], atol=4 * AVERAGE[t.dtype])


@pytest.mark.parametrize("dtype", list(BYOL))
@pytest.mark.parametrize("shape", [(1, 256), (33, 127), (5, 4099), pytest.param((4096, 256), marks=large)])
def test_byol(shape, dtype):
    p, z = (torch.randn(shape, device=DEVICE).to(dtype) for _ in range(2))
    # The sum over the rows: the mean's gradient would fall among float16's subnormal numbers.
    with no_synchronisation():
        loss, gradient = gradient_of(lambda a, b: byol_loss(a, b) * shape[0], p, z)
    expected, exact = gradient_of(lambda a, b: byol_reference(a, b).sum(), p.double(), z.double())
    assert gradient.dtype == dtype
    assert abs(float(loss - expected)) <= 2 * min(BYOL[dtype], 2e-6) * shape[0]
    assert relative(gradient, exact) <= BYOL[dtype]
