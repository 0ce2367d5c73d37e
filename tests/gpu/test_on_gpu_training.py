"""A real training step in bf16 on a GPU: it waits for nothing, and is the step of the CPU."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from every_method import make, random_views, state
from on_device import DEVICE, no_synchronisation

import fastssl
from fastssl.engine.finite import Guard
from fastssl.engine.step import train_step
from fastssl.methods import Method
from fastssl.optim import build_optimizer

pytestmark = pytest.mark.gpu
STEPS = 3
LR = 0.005


def steps(method: Method, name: str, device: torch.device, precision: str, *, watched: bool) -> list[float]:
    """Losses of `STEPS` steps on other views each: the first makes the optimizer's state, in later ones queues wrap."""
    # oneDNN's 1 × 1 convolutions of stride 2 write out of bounds on a CPU with channels-last groups of 3 images.
    method.to(device, memory_format=torch.channels_last if device.type == "cuda" else torch.preserve_format)
    optimizer = build_optimizer(method, fastssl.recipes.get(name).optim)
    # On a CPU the guard reads the loss, as nothing waits there.
    guard = Guard(method, device, 10, precision) if device.type == "cuda" else None
    batches = [random_views(step).to(device) for step in range(STEPS)]

    def step(number: int) -> torch.Tensor:
        options = {"lr": LR, "precision": precision, "guard": guard}
        return train_step(method, optimizer, batches[number], state(number), **options).total.detach()

    losses = [step(0)]
    with no_synchronisation() if watched else contextlib.nullcontext():
        losses += [step(number) for number in range(1, STEPS)]
    return [loss.item() for loss in losses]


def update(method: Method, before: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the steps changed in the trained parameters, as one vector."""
    changes = [p.detach().cpu() - before[name] for name, p in method.named_parameters() if p.requires_grad]
    return torch.cat([change.flatten() for change in changes])


@pytest.mark.parametrize("name", ["simclr", "mocov2"])
def test_bf16_steps_wait_for_nothing_and_are_those_of_the_cpu(name):
    method = make(name)
    exact = copy.deepcopy(method)
    before = copy.deepcopy(method.state_dict())
    losses = steps(method, name, DEVICE, "bf16", watched=True)
    expected = steps(exact, name, torch.device("cpu"), "fp32", watched=False)
    # Activations round at 2^-9 through ten layers of batch norms over a few images.
    assert losses == pytest.approx(expected, rel=0.02)
    ours, theirs = update(method, before), update(exact, before)
    assert ours.norm() > 0
    assert torch.cosine_similarity(ours, theirs, dim=0) >= 0.8
    for key, value in method.state_dict().items():
        assert value.device.type == DEVICE.type, key
        if value.is_floating_point():
            assert value.isfinite().all(), key
        else:
            assert torch.equal(value.cpu(), exact.state_dict()[key]), key
