"""No training step waits for the device: every method, with the optimizer of its recipe, whole and in micro-batches.

The CPU's step is watched operation by operation, also inside this project's operators, whose CPU functions run in the
open. A GPU is played by tensors without content, which have a device, so that copies from and to the host show; its
backward pass and its kernels cannot be played.
"""

from __future__ import annotations

import pytest
import torch
from every_method import make, random_views, state
from no_reading import NoReading
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fastssl
from fastssl.engine.step import train_step
from fastssl.methods import METHODS, Method, momentum
from fastssl.optim import OptimConfig, build_optimizer

torch.set_num_threads(1)


def watched_steps(name: str, optim: OptimConfig, micro_batch: int | None, precision: str) -> NoReading:
    """The first step, in which optimizers make their state, and two more, in which queues are full and wrap."""
    method = make(name)
    optimizer = build_optimizer(method, optim)
    batches = [random_views(step) for step in range(3)]
    with NoReading() as operations:
        for step, views in enumerate(batches):
            options = {"lr": 0.05, "precision": precision, "micro_batch": micro_batch}
            train_step(method, optimizer, views, state(step), **options)
    return operations


@pytest.mark.parametrize("micro_batch", [None, 6])
@pytest.mark.parametrize("name", METHODS)
def test_no_step_reads_a_number_back(name, micro_batch):
    operations = watched_steps(name, fastssl.recipes.get(name).optim, micro_batch, "fp32")
    assert "aten::convolution_backward" in operations.seen, "the backward pass is watched too"


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_optimizer_reads_a_number_back(name, precision):
    for variant in "ABC" if name == "lars" else "A":
        operations = watched_steps("byol", OptimConfig(name=name, lars_variant=variant), None, precision)
        assert "aten::convolution_backward" in operations.seen


def as_if_on_gpu(method: Method) -> Method:
    """The method with parameters and buffers that have a GPU for their device and no content."""
    for module in method.modules():
        for key, p in module._parameters.items():
            if p is not None:
                empty = torch.empty(p.shape, dtype=p.dtype, device="cuda")
                module._parameters[key] = nn.Parameter(empty, p.requires_grad)
        for key, b in module._buffers.items():
            if b is not None:
                module._buffers[key] = torch.empty(b.shape, dtype=b.dtype, device="cuda")
    return method


@pytest.mark.parametrize("name", METHODS)
def test_no_loss_copies_between_host_and_gpu(name, monkeypatch):
    """The loss and what the step leaves in queues and memories; the average's launch would ask for a driver."""
    monkeypatch.setattr(momentum, "ema_update_", lambda *_: None)
    method = make(name)
    with FakeTensorMode(allow_non_fake_inputs=False):
        views = random_views(0).to(torch.device("cuda"))
        as_if_on_gpu(method)
        with NoReading(inside=False) as operations:
            losses = method.loss(views, state(1))
            method.after_step(state(1))
    assert losses.total.device.type == "cuda"
    assert "aten::convolution" in operations.seen
