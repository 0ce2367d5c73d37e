"""Memory order of dense tensors: when two tensors may be treated as one flat array each."""

from __future__ import annotations

import torch
from torch import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill `numel` consecutive places, in any dimension order (channels-last is dense)."""
    if tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)):
        return True  # two usual orders, told at once
    expected = 1
    for stride, size in sorted(
        (stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1
    ):
        if stride != expected:
            return False
        expected *= size
    return True


def same_order(first: Tensor, second: Tensor) -> bool:
    """Whether two dense tensors of one shape keep their elements in the same order of memory."""
    strides, others = first.stride(), second.stride()
    if strides == others or first.numel() == 0:
        return True
    return all(a == b for a, b, size in zip(strides, others, first.shape, strict=True) if size > 1)


def flat(tensor: Tensor) -> Tensor:
    """One-dimensional alias of a dense tensor, in memory order."""
    if tensor.is_contiguous():
        return tensor.view(-1)
    return tensor.as_strided((tensor.numel(),), (1,))


def in_order_of(tensor: Tensor, model: Tensor) -> Tensor:
    """`tensor` itself if its memory order is that of the dense `model` (same shape), else a copy in that order."""
    if is_dense(tensor) and same_order(tensor, model):
        return tensor
    ordered = torch.empty_strided(model.shape, model.stride(), dtype=tensor.dtype, device=tensor.device)
    return ordered.copy_(tensor)
