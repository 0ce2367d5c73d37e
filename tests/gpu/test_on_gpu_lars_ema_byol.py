"""LARS, the parameter average and BYOL's loss on a device: against the CPU, without synchronisation, in a graph."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import pytest
import torch
from fastssl_kernels.byol import byol_loss
from fastssl_kernels.ema import ema_update_
from fastssl_kernels.lars import LARS, exclude_from_adaptation
from torch import nn

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@contextlib.contextmanager
def no_synchronisation() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def network(device: str) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 67, 3), nn.BatchNorm2d(67), nn.Conv2d(67, 129, 3), nn.Linear(1111, 1003))
    return net.to(device, memory_format=torch.channels_last)


def set_gradients(net: nn.Module, step: int) -> None:
    torch.manual_seed(100 + step)
    for p in net.parameters():
        g = torch.randn(p.shape)
        p.grad = g.to(p.device).contiguous(
            memory_format=torch.channels_last if p.ndim == 4 else torch.contiguous_format
        )


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("variant", ["A", "B", "C"])
def test_lars_equals_the_cpu(variant, nesterov):
    results = []
    for device in ("cpu", "cuda"):
        net = network(device)
        online = list(net.parameters())
        targets, copies = [torch.ones_like(p) for p in online], [p.detach().bfloat16() for p in online]
        optimizer = LARS(
            exclude_from_adaptation(net, weight_decay=0.01),
            0.5,
            variant=variant,
            nesterov=nesterov,
            ema=(targets, online),
            copies=(copies, online),
        )
        optimizer.found_inf = torch.zeros((), device=device)
        for step in range(4):
            set_gradients(net, step)
            for group in optimizer.param_groups:
                group["lr"] = 0.5 / (step + 1)
            with no_synchronisation() if device == "cuda" else contextlib.nullcontext():
                optimizer.step()
        results.append([t.detach().cpu() for t in (*online, *targets)])
        for p, c in zip(online, copies, strict=True):
            assert torch.equal(c, p.detach().bfloat16())
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6)


def test_lars_in_a_graph_follows_device_scalars():
    plain, captured = network("cuda"), network("cuda")
    lr = torch.tensor(0.5, device="cuda")
    for net in (plain, captured):
        set_gradients(net, 0)
    grads = [p.grad for p in captured.parameters()]
    ordinary = LARS(exclude_from_adaptation(plain), 0.5)
    recorded = LARS(exclude_from_adaptation(captured), lr)
    ordinary.step()
    recorded.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        # As a captured backward pass does: gradients at addresses that no ordinary step has seen.
        for p, g in zip(captured.parameters(), grads, strict=True):
            p.grad = g * 1.0
        recorded.step()
    for step in range(1, 4):
        lr.fill_(0.5 / step)
        for group in ordinary.param_groups:
            group["lr"] = 0.5 / step
        set_gradients(plain, step)
        for g, p in zip(grads, plain.parameters(), strict=True):
            g.copy_(p.grad)
        ordinary.step()
        graph.replay()
    for p, q in zip(plain.parameters(), captured.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad):
    net = network("cuda")
    optimizer = LARS(exclude_from_adaptation(net), 0.5)
    optimizer.found_inf = torch.zeros((), device="cuda")
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


def test_average_equals_the_cpu():
    torch.manual_seed(0)
    shapes, kinds = [(), (0,), (3,), (1000, 1003), (65, 7, 3, 3)], [torch.float32, torch.bfloat16]
    targets = [torch.randn(s).to(k) for s in shapes for k in kinds]
    onlines = [torch.randn(s) for s in shapes for _ in kinds]
    devices = [[t.cuda() for t in ts] for ts in (targets, onlines)]
    momentum = torch.tensor(0.99, device="cuda", dtype=torch.float64)
    with no_synchronisation():
        ema_update_(*devices, momentum)
    ema_update_(targets, onlines, 0.99)
    for t, d in zip(targets, devices[0], strict=True):
        torch.testing.assert_close(d.cpu(), t, rtol=2**-8 if t.dtype == torch.bfloat16 else 1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (33, 127), (4096, 256), (5, 4099)])
def test_byol_equals_the_cpu(shape, dtype):
    torch.manual_seed(0)
    p, z = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    results = []
    for device in ("cpu", "cuda"):
        leaf = p.to(device).requires_grad_()
        loss = byol_loss(leaf, z.to(device)) * shape[0]
        loss.backward()
        results.append((loss.detach().cpu(), leaf.grad.cpu().float()))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-5)
    assert (results[1][1] - results[0][1]).norm() <= 5e-3 * results[0][1].norm() + 1e-6
