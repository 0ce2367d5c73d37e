"""The gradient of a large batch in the activation memory of a small one (Gao et al., arXiv 2101.06983).

A contrastive loss L compares all images of a batch, so its gradient is no sum over parts of the batch. But the
networks f see an image at a time, and the chain rule lets the comparison stand between two passes:

    1. z = f(x), a micro-batch at a time, without a graph: only the embeddings z of the whole batch are kept
    2. L(z) and g = ∂L/∂z, exact: all embeddings are there
    3. f(x) again, a micro-batch at a time with its graph, and ∂L/∂θ = Σ gᵀ ∂z/∂θ, added up

Networks run forward twice and backward once. Loss and gradient are those of the whole batch, with one exception that
the field makes too: batch norm in training mode takes its statistics from what passes through together, which is the
micro-batch (MoCo's groups of batch norm are kept whole, so that MoCo is exact). Running statistics are updated by the
first pass only, dropout draws the same masks in both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..data.views import Views
from ..methods import Losses, Method, StepState
from ..models import frozen_statistics
from .precision import autocast


def backward_in_micro_batches(
    method: Method,
    views: Views,
    step: StepState,
    images: int,
    *,
    precision: str,
    embed: Callable[[Views], Tensor] | None = None,
    unsynchronised: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    scale: Tensor | None = None,
) -> Losses:
    """Add the gradient of the loss of `views` to the parameters, `images` images at a time; the losses, detached.

    Args:
        embed: `method.embed`, or the module around it whose forward pass prepares the exchange of gradients between
            processes. It runs the passes with a graph.
        unsynchronised: a context for all of these but the last, in which gradients are only added up.
        scale: a scalar that multiplies the gradient, from the loss on; the losses returned are not multiplied.
    """
    device = views.groups[0].device
    # Each part has an autocast of its own, which would else remember weights that were cast without a graph.
    with torch.no_grad(), autocast(device, precision):
        generators, rows = [], []
        for part in views.micro_batches(images):
            generators.append(_generators(device))
            rows.append(method.embed(part).unflatten(0, (-1, part.batch_size)))
        targets = method.targets(views, step, images)
        embedded = torch.cat(rows, 1)
    with autocast(device, precision):
        whole = embedded.flatten(0, 1).requires_grad_()
        losses = method.loss_of(whole, targets, views, step)
    # Parameters that the loss itself reads (SwAV's prototypes) get their gradient from it, with the last micro-batch.
    direct = [p for p in method.parameters() if p.requires_grad]
    total = losses.total if scale is None else losses.total * scale
    gradient, *of_direct = torch.autograd.grad(total, [whole, *direct], allow_unused=True)
    last = [(p, g) for p, g in zip(direct, of_direct, strict=True) if g is not None]
    gradients = gradient.reshape(embedded.shape).split(images, 1)
    with frozen_statistics(method):
        for i, (part, state, g) in enumerate(zip(views.micro_batches(images), generators, gradients, strict=True)):
            more = i + 1 < len(generators)
            with unsynchronised() if more else contextlib.nullcontext():
                with _restored(device, state), autocast(device, precision):
                    z = (embed or method.embed)(part)
                roots = [(z, g.flatten(0, 1)), *([] if more else last)]
                torch.autograd.backward([z for z, _ in roots], [g for _, g in roots])
    return Losses(losses.total.detach(), losses.metrics)


def _generators(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The state of the generators that a network may draw from. Nothing waits for the device."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextlib.contextmanager
def _restored(device: torch.device, state: tuple[Tensor, Tensor | None]) -> Iterator[None]:
    """Draw what was drawn from `state` on; afterwards the generators are where they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], device)
        yield
