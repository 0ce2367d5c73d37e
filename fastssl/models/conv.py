"""A convolution whose weight gradient does not crawl on small feature maps.

On the CPU, oneDNN computes the bf16 weight gradient of a 3 × 3 convolution over a map of few positions several times
slower than the same product written as one matrix product over gathered patches. Values are those of `nn.Conv2d`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST_MAP = 16
"""Output positions up to which gathered patches win: beyond, writing them costs more than the product saves."""


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` with square kernels and zero padding, no groups, no dilation and no bias."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            bf16 = torch.get_autocast_dtype("cpu") == torch.bfloat16
        else:
            bf16 = input.dtype == self.weight.dtype == torch.bfloat16
        if not (input.is_cpu and bf16 and self.weight.requires_grad and self._positions(input) <= LARGEST_MAP):
            return super().forward(input)
        stride, padding = int(self.stride[0]), int(self.padding[0])
        return _SmallMap.apply(input.to(torch.bfloat16), self.weight.to(torch.bfloat16), stride, padding)

    def _positions(self, input: Tensor) -> int:
        kernel, stride, padding = self.kernel_size[0], int(self.stride[0]), int(self.padding[0])
        height, width = ((n + 2 * padding - kernel) // stride + 1 for n in input.shape[-2:])
        return height * width


class _SmallMap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.stride, ctx.padding = stride, padding
        return torch.conv2d(input, weight, None, stride, padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        input, weight = ctx.saved_tensors
        stride, padding = ctx.stride, ctx.padding
        into_input = into_weight = None
        if ctx.needs_input_grad[0]:
            sizes = [stride, stride], [padding, padding], [1, 1], False, [0, 0], 1
            into_input = torch.ops.aten.convolution_backward(grad, input, weight, None, *sizes, [True, False, False])[0]
        if ctx.needs_input_grad[1]:
            into_weight = _weight_gradient(grad, input, weight.shape[-1], stride, padding)
        return into_input, into_weight, None, None


def _weight_gradient(grad: Tensor, input: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Σ over images and positions of grad ⊗ patch; `[channels_out, channels_in, kernel, kernel]`, channels last."""
    images, channels_out, height, width = grad.shape
    channels_in = input.shape[1]
    padded = F.pad(input.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding)).contiguous()
    of_image, of_row, of_column, of_channel = padded.stride()
    patches = padded.as_strided(
        (images, height, width, kernel, kernel, channels_in),
        (of_image, of_row * stride, of_column * stride, of_row, of_column, of_channel),
    ).reshape(images * height * width, kernel * kernel * channels_in)
    rows = grad.permute(0, 2, 3, 1).reshape(images * height * width, channels_out)
    return (rows.T @ patches).view(channels_out, kernel, kernel, channels_in).permute(0, 3, 1, 2)
