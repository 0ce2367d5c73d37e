"""BYOL's kernels against float64, in any order of programs, and what they move."""

import pytest
import torch
from fastssl_kernels.byol import byol_reference, cost
from fastssl_kernels.byol.launch import byol_backward, byol_forward
from fastssl_kernels.byol.op import SMALLEST_SQUARE
from proof.interpreter import same_in_any_order

# Sums of up to 1,500 float32 products; bfloat16 and float16 gradients are rounded once.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 3e-3, torch.float16: 5e-4}


def run(p: torch.Tensor, z: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    losses, statistics = byol_forward(p, z, grad.dtype, SMALLEST_SQUARE)
    return losses, statistics, byol_backward(grad, p, z, statistics)


@pytest.mark.parametrize(
    ("rows", "width", "dtype"),
    [
        *((rows, width, torch.float32) for rows, width in [(1, 1), (2, 7), (33, 127), (52, 256), (5, 1500)]),
        *((33, 256, dtype) for dtype in (torch.float64, torch.bfloat16, torch.float16)),
        (17, 100, torch.bfloat16),
    ],
)
def test_value_and_gradient(rows, width, dtype):
    torch.manual_seed(0)
    p, z = torch.randn(rows, width).to(dtype), torch.randn(rows, width).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    grad = torch.rand(rows, dtype=wide) + 0.5
    (losses, _, gradient), work = same_in_any_order(lambda: run(p, z, grad), orders=2)
    leaf = p.double().requires_grad_()
    expected = byol_reference(leaf, z.double())
    expected.backward(grad.double())
    assert (losses.double() - expected).abs().max() <= 4 * min(TOLERANCE[dtype], 1e-6)
    size = leaf.grad.norm() if width > 1 else (2 * grad / p.abs().squeeze(1)).double().norm()
    assert (gradient.double() - leaf.grad).norm() <= TOLERANCE[dtype] * size
    item, number = p.element_size(), grad.element_size()
    assert work.launches == 2
    if number == 4:
        assert work.loaded + work.stored == cost.forward_bytes(rows, width, item) + cost.backward_bytes(
            rows, width, item
        )


def test_aligned_and_zero_rows():
    torch.manual_seed(0)
    z = torch.randn(8, 64)
    p = 3 * z + 1e-3 * torch.randn(8, 64)
    p[1], z[2], p[3], p[4] = 0, 0, z[3], -z[4]
    (losses, _, gradient), _ = same_in_any_order(lambda: run(p, z, torch.ones(8)), orders=2)
    leaf = p.double().requires_grad_()
    expected = byol_reference(leaf, z.double())
    expected.sum().backward()
    assert (losses.double() - expected).abs().max() <= 1e-6
    assert (gradient.double() - leaf.grad).abs().max() <= 1e-6 / float(p[0].norm())
    assert torch.equal(gradient[1:3], torch.zeros(2, 64))
    assert losses[1] == losses[2] == 2


def test_strides():
    torch.manual_seed(0)
    p, z = torch.randn(64, 9).t(), torch.randn(9, 128)[:, ::2]
    grad = torch.ones(1).expand(9)
    (losses, _, gradient), _ = same_in_any_order(lambda: run(p, z, grad), orders=1)
    plain, _ = same_in_any_order(lambda: run(p.contiguous(), z.contiguous(), grad.contiguous()), orders=1)
    assert torch.equal(losses, plain[0])
    assert torch.equal(gradient, plain[2])
