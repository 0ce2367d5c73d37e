"""The convolution for small maps is torch's own convolution, to bf16's rounding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastssl.models.conv import LARGEST_MAP, Conv2d

# (images, channels in, channels out, kernel, stride, height, width)
SHAPES = [
    (8, 16, 24, 3, 1, 4, 4),
    (8, 16, 24, 3, 2, 7, 5),
    (5, 24, 8, 1, 2, 8, 8),
    (1, 8, 8, 3, 1, 1, 1),
    (3, 3, 8, 7, 2, 6, 6),
    (3, 8, 8, 3, 1, 9, 9),
]


def gradients(conv: nn.Module, x: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    y = conv(x)
    y.backward(grad.to(y.dtype))
    assert conv.weight.grad is not None
    assert x.grad is not None
    return [y.detach(), x.grad, conv.weight.grad]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_equals_the_float64_convolution_of_the_rounded_operands(shape, layout):
    images, cin, cout, kernel, stride, height, width = shape
    torch.manual_seed(0)
    ours = Conv2d(cin, cout, kernel, stride)
    with torch.no_grad():
        ours.weight.copy_(ours.weight.bfloat16())
    exact = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False).double()
    exact.load_state_dict(ours.state_dict())
    ours.to(memory_format=layout)
    x = torch.randn(images, cin, height, width).bfloat16().float().to(memory_format=layout)
    grad = torch.randn_like(exact(x.double())).bfloat16()
    plain = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False)
    plain.load_state_dict(ours.state_dict())
    plain.to(memory_format=layout)
    with torch.autocast("cpu", torch.bfloat16):
        got, torchs = gradients(ours, x, grad), gradients(plain, x, grad)
    for value, by_torch, reference in zip(got, torchs, gradients(exact, x.double(), grad), strict=True):
        # Operands are exact, sums are fp32, the result is rounded to 8 bits once. Processors without bf16 products
        # round more often within torch's own convolution, which larger maps take.
        inherited = (by_torch.double() - reference).norm()
        assert (value.double() - reference).norm() <= torch.maximum(2**-8 * reference.norm(), inherited)


def test_small_maps_take_the_patches_and_large_ones_do_not():
    conv = Conv2d(8, 8, 3)
    for side, name in ((4, "_SmallMap"), (5, "Convolution")):
        assert (side * side <= LARGEST_MAP) == (name == "_SmallMap")
        with torch.autocast("cpu", torch.bfloat16):
            assert name in type(conv(torch.randn(2, 8, side, side)).grad_fn).__name__
    assert "Convolution" in type(conv(torch.randn(2, 8, 4, 4)).grad_fn).__name__, "fp32 stays with torch"


def test_fp16_stays_with_torch():
    conv = Conv2d(8, 8, 3)
    with torch.autocast("cpu", torch.float16):
        y = conv(torch.randn(2, 8, 4, 4))
    assert y.dtype == torch.float16
    assert "Convolution" in type(y.grad_fn).__name__


def test_no_images():
    conv = Conv2d(8, 8, 3)
    with torch.autocast("cpu", torch.bfloat16):
        conv(torch.zeros(0, 8, 4, 4)).sum().backward()
    assert conv.weight.grad is not None
    assert not conv.weight.grad.any()
