"""Three steps of a method beside a transcription of its equations in float64: losses, then all weights and state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastssl.data.views import Views
from fastssl.methods import Method, StepState

LR = 0.05
EPOCH = 4
"""Steps."""
WIDTH = 12


class Tiny(nn.Module):
    """A backbone for any image size, with a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.out = nn.Linear(8, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def random_views(step: int, counts: tuple[int, ...] = (2,), images: int = 8) -> Views:
    generator = torch.Generator().manual_seed(100 + step)
    sizes = (12, 8)
    groups = tuple(
        torch.rand(count * images, 3, size, size, generator=generator)
        for count, size in zip(counts, sizes, strict=False)
    )
    ids = torch.randperm(4 * images, generator=generator)[:images]
    return Views(groups, counts, ids=ids, labels=ids % 3)


def trained(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def descend(loss: Tensor, parameters: list[nn.Parameter]) -> None:
    """Plain gradient descent, which leaves the gradients behind; a parameter without one stays."""
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
            if gradient is not None:
                parameter -= LR * gradient


def same_gradients(method: nn.Module, reference: nn.Module, tolerance: float) -> None:
    """Every parameter's gradient. What should be 0 but for rounding, as that of a bias before a norm, is measured by
    the gradient of all parameters."""
    expected = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    found = {name: p.grad.double() for name, p in method.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    everything = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm()
        assert error <= tolerance * (gradient.norm() + 0.1 * everything), f"{name}: {error} of {gradient.norm()}"


def run_beside(
    method: Method,
    transcription: Callable[..., Tensor],
    reference: nn.Module,
    *,
    counts: tuple[int, ...] = (2,),
    steps: int = 3,
    tolerance: float = 2e-4,
) -> None:
    """`transcription(step, views)` makes one whole step of `reference`, a float64 copy, and returns its loss.

    Where the method `needs_data` it gets the images' ids and labels too, as `transcription(step, views, ids, labels)`.
    The tolerance is that of fp32 losses and gradients (1e-5) after a few steps through batch norms of eight rows.
    """
    method.train()
    reference.train()
    for step in range(steps):
        views = random_views(step, counts)
        state = StepState(step, total_steps=10, steps_per_epoch=EPOCH)
        begin_epoch(method, state, counts)
        losses = method.loss(views, state)
        for parameter in method.parameters():
            parameter.grad = None
        losses.total.backward()
        method.after_backward(state)
        with torch.no_grad():
            for parameter in trained(method):
                if parameter.grad is not None:
                    parameter -= LR * parameter.grad
        method.after_step(state)
        told = (views.ids, views.labels) if method.needs_data else ()
        expected = transcription(step, [view.double() for view in views.each()], *told)
        assert abs(losses.total.item() - expected.item()) <= tolerance * max(1.0, abs(expected.item()))
        same_gradients(method, reference, 5 * tolerance)
        for name, value in losses.metrics.items():
            assert value.isfinite().all(), name
            assert not value.requires_grad, name
    wanted = dict(reference.state_dict())
    for name, value in method.state_dict().items():
        if value.is_floating_point():
            error = (value.double() - wanted[name].double()).norm()
            assert error <= tolerance * max(wanted[name].double().norm().item(), 1e-3), f"{name}: {error}"
        else:
            assert torch.equal(value, wanted[name]), name


def begin_epoch(method: Method, state: StepState, counts: tuple[int, ...]) -> None:
    """What the engine does before the first step of an epoch."""
    if state.step % EPOCH == 0:
        with torch.no_grad():
            method.before_epoch(state, lambda: (random_views(state.step + i, counts) for i in range(EPOCH)))


def blend_(targets: list[nn.Module], onlines: list[nn.Module], momentum: float) -> None:
    """The moving average, parameters only."""
    with torch.no_grad():
        for target, online in zip(targets, onlines, strict=True):
            for t, o in zip(target.parameters(), online.parameters(), strict=True):
                t.copy_(momentum * t + (1 - momentum) * o)


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def same_after_saving(make: Callable[[], Method], counts: tuple[int, ...] = (2,), after: int = 2) -> None:
    """Save after some steps, load into a new method: the next step has the same bits."""
    state = lambda step: StepState(step, total_steps=10, steps_per_epoch=EPOCH)  # noqa: E731

    def step(method: Method, number: int) -> Tensor:
        begin_epoch(method, state(number), counts)
        losses = method.loss(random_views(number, counts), state(number))
        for parameter in method.parameters():
            parameter.grad = None
        losses.total.backward()
        method.after_backward(state(number))
        with torch.no_grad():
            for parameter in trained(method):
                if parameter.grad is not None:
                    parameter -= LR * parameter.grad
        method.after_step(state(number))
        return losses.total.detach()

    torch.manual_seed(0)
    first = make().train()
    for number in range(after):
        step(first, number)
    saved = {name: value.clone() for name, value in first.state_dict().items()}
    torch.manual_seed(1)
    second = make().train()
    second.load_state_dict(saved)
    assert torch.equal(step(first, after), step(second, after))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
