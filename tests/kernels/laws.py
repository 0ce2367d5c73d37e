"""Laws of the operations against their definitions in float64, for tests on any device.

Tolerances are relative norms, from the dtype: fp32 sums of rounded terms; 2^-9 (2^-12) of a 16-bit operand, twice in a
product.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from fastssl_kernels import nearest_neighbor, nt_xent, relic, sinkhorn
from fastssl_kernels.nearest_neighbor import nearest_neighbor_reference
from fastssl_kernels.nt_xent import nt_xent_reference
from fastssl_kernels.relic import relic_reference
from fastssl_kernels.sinkhorn import sinkhorn_reference
from fastssl_kernels.swapped_prediction import swapped_prediction_reference
from torch import Tensor

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 2e-3}
# Of the codes: fp32 sums, and exponentials of numbers up to 20 / ln 2 rounded to 24 bits.
CODES = 1e-5
# How far from the best a chosen row may be: the rounding of fp32 sums, or of the row to bfloat16. The bound is
# 2⁻⁷, 2⁻⁸ for either of the two that are compared; no row here comes near its half.
SHORT = {torch.float32: 2e-6, torch.bfloat16: 2**-8 + 2e-6, torch.float16: 2e-6}


def relative(ours: Tensor, exact: Tensor) -> float:
    assert ours.isfinite().all()
    return ((ours.double() - exact).norm() / exact.norm().clamp_min(1e-30)).item()


def assert_gradient(leaf: Tensor, exact: Tensor, tolerance: float) -> None:
    """Where the exact gradient is nothing but rounding, ours is small as well."""
    assert leaf.grad is not None
    assert exact.grad is not None
    assert leaf.grad.dtype == leaf.dtype
    if exact.grad.norm() > 1e-12:
        assert relative(leaf.grad, exact.grad) <= tolerance
    else:
        assert leaf.grad.norm() <= 1e-6


def loss_scale(z: Tensor) -> int:
    """The mean's gradient would fall among float16's subnormal numbers: the sum over the rows does not."""
    return len(z) if z.dtype == torch.float16 else 1


def assert_nt_xent(z: Tensor, *, tolerance: float, **options) -> None:
    """Loss, metrics and gradient of `nt_xent`."""
    ours, exact = z.clone().requires_grad_(), z.double().requires_grad_()
    loss, metrics = nt_xent(ours, return_metrics=True, **options)
    expected, counted = nt_xent_reference(exact, return_metrics=True, **options)
    (loss * loss_scale(z)).backward()
    (expected * loss_scale(z)).backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance, abs=tolerance)
    assert metrics.entropy.item() == pytest.approx(counted.entropy.item(), rel=10 * tolerance, abs=10 * tolerance)
    assert abs(metrics.accuracy.item() - counted.accuracy.item()) <= (1e-6 if tolerance < 1e-4 else 0.02)
    assert_gradient(ours, exact, tolerance)


def assert_relic(online: Tensor, target: Tensor, *, tolerance: float, **options) -> None:
    """Loss, metrics and gradient of `relic`."""
    ours, exact = online.clone().requires_grad_(), online.double().requires_grad_()
    loss, metrics = relic(ours, target, return_metrics=True, **options)
    expected, counted = relic_reference(exact, target.double(), return_metrics=True, **options)
    (loss * loss_scale(online)).backward()
    (expected * loss_scale(online)).backward()
    assert loss.dtype == torch.float32
    for mine, theirs in zip(
        (loss, *metrics[:2], metrics.entropy), (expected, *counted[:2], counted.entropy), strict=True
    ):
        assert mine.item() == pytest.approx(theirs.item(), rel=5 * tolerance, abs=5 * tolerance)
    assert abs(metrics.accuracy.item() - counted.accuracy.item()) <= (1e-6 if tolerance < 1e-4 else 0.02)
    assert_gradient(ours, exact, tolerance)


def assert_codes(scores: Tensor, tolerance: float = CODES, **options) -> Tensor:
    """Codes of `sinkhorn`, and that each row sums to 1."""
    codes = sinkhorn(scores, **options)
    exact = {k: v.double() if isinstance(v, Tensor) else v for k, v in options.items()}
    expected = sinkhorn_reference(scores.double(), **exact)
    assert codes.dtype == torch.float32
    assert codes.shape == scores.shape
    assert relative(codes, expected) <= tolerance
    torch.testing.assert_close(codes.sum(-1), torch.ones_like(codes[..., 0]), rtol=0, atol=1e-5)
    return codes


def assert_nearest(z: Tensor, queue: Tensor, k: int = 1):
    """Every law of the result: places in order, exact similarities, rows of the queue, none better left behind."""
    found = nearest_neighbor(z, queue, k)
    rows, index, similarity = (t.unsqueeze(1) for t in found) if k == 1 else found
    assert rows.shape == (*index.shape, z.shape[1])
    assert index.shape == similarity.shape == (len(z), k)
    assert (rows.dtype, index.dtype, similarity.dtype) == (z.dtype, torch.int64, torch.float32)
    assert torch.equal(rows, queue[index].to(z.dtype))
    every = F.normalize(z.double(), dim=1) @ queue.double().T
    exact = every.gather(1, index)
    # fp32 sums of D products.
    torch.testing.assert_close(similarity.double(), exact, rtol=0, atol=1e-6)
    assert (similarity[:, :-1] >= similarity[:, 1:]).all()
    assert all(len(set(row)) == k for row in index.tolist())
    best = every.topk(k).values
    assert (best - exact).max() <= SHORT[queue.dtype]
    if queue.dtype == torch.float32:
        expected, _ = nearest_neighbor_reference(z.double(), queue, k)
        clear = (every.topk(min(k + 1, len(queue))).values.diff(dim=1).abs() > 1e-5).all(1)
        assert torch.equal(index[clear], expected[clear])
    return found


def exact_swapped_prediction(z: Tensor, prototypes: Tensor, codes: Tensor, **options) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients of features and prototypes in float64."""
    exact = [z.detach().double().requires_grad_(), prototypes.detach().double().requires_grad_()]
    scores = exact[0].view(-1, codes.shape[1], z.shape[1]) @ exact[1].T
    loss = swapped_prediction_reference(scores, codes.double(), **options)
    loss.backward()
    by_z, by_prototypes = (t.grad for t in exact)
    assert by_z is not None
    assert by_prototypes is not None
    return loss.detach(), by_z, by_prototypes


def gradient_of(loss, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient of a loss of BYOL's kind by its first argument."""
    leaf = prediction.detach().clone().requires_grad_()
    value = loss(leaf, target)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad
