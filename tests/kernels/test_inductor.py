"""One program of torch's own compiler that calls every loss, the codes, the neighbours and the queue."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from fastssl_kernels import (
    Queue,
    byol_loss,
    ema_update_,
    info_nce,
    nearest_neighbor,
    nt_xent,
    relic,
    sinkhorn_from_features,
    swapped_prediction,
)

pytestmark = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "clang++")), reason="inductor needs a C++ compiler on the CPU"
)


def step(weight, images, prototypes, queue, average):
    z = F.normalize(images @ weight)
    first, second = z.chunk(2)
    codes = sinkhorn_from_features(z.detach().view(2, -1, z.shape[1]), prototypes)
    found = nearest_neighbor(first, queue)
    loss = nt_xent(z, temperature=0.2) + info_nce(found.rows, second, temperature=0.2)
    loss = loss + swapped_prediction(z, prototypes, codes, temperature=0.1) + byol_loss(first, second.detach())
    loss = loss + relic(z, z.detach(), views=(2, 0), temperature=0.2, alpha=0.5, self_pairs=False)
    queue.enqueue(first.detach())
    ema_update_([average], [weight.detach()], 0.9)
    return loss, found.indices


def run(function):
    """Loss, neighbours, gradients, and what is written in place."""
    torch.manual_seed(0)
    weight, prototypes = torch.randn(12, 8, requires_grad=True), F.normalize(torch.randn(6, 8)).requires_grad_()
    queue, average = Queue(64, 8, seed=0), torch.zeros(12, 8)
    loss, indices = function(weight, torch.randn(20, 12), prototypes, queue, average)
    loss.backward()
    return loss.detach(), indices, weight.grad, prototypes.grad, queue.rows, average


def test_inductor_makes_one_graph_of_a_step_with_every_operation():
    # Inductor fuses and reorders what is around the operators: fp32.
    for compiled, eager in zip(run(torch.compile(step, fullgraph=True)), run(step), strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)
