"""Exponential moving average of parameter lists: validation and dispatch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .scalar import host_scalar

DTYPES = frozenset((torch.float64, torch.float32, torch.float16, torch.bfloat16))


@torch.no_grad()
def ema_update_(target: Iterable[Tensor], online: Iterable[Tensor], momentum: float | Tensor) -> None:
    """target ← momentum · target + (1 − momentum) · online, in place, tensor by tensor.

    One kernel launch on CUDA for any number of tensors of one pair of dtypes; on the CPU torch's foreach interpolation.
    Batch-norm statistics are averaged only if the caller lists them (the methods of this field do not).

    Args:
        target: tensors to update, of floating dtype, any shapes and memory layouts. Arithmetic is float32, or float64
            where one of the pair is; the result is rounded once, to the target's dtype.
        online: as many tensors, of the same shapes and device; dtypes may differ.
        momentum: in [0, 1], a number or a zero-dimensional tensor (on CUDA it is read by the kernel, without a
            synchronisation; a float64 scalar keeps 1 − momentum exact).

    Raises:
        ValueError: lists of different length, shapes or devices that differ, momentum out of range.
        TypeError: a tensor that is not of floating dtype.
    """
    targets, onlines = list(target), list(online)
    _check(targets, onlines, momentum)
    if not targets:
        return
    if targets[0].device.type == "cpu":
        _on_cpu(targets, onlines, 1.0 - host_scalar(momentum, "momentum"))
    else:
        from .launch import ema_launch  # Triton does not exist everywhere that torch does

        ema_launch(targets, onlines, momentum)


def _on_cpu(targets: list[Tensor], onlines: list[Tensor], weight: float) -> None:
    if [t.dtype for t in targets] == [o.dtype for o in onlines]:
        torch._foreach_lerp_(targets, onlines, weight)
        return
    for t, o in zip(targets, onlines, strict=True):
        wide = torch.float64 if torch.float64 in (t.dtype, o.dtype) else torch.float32
        t.copy_(torch.lerp(t.to(wide), o.to(wide), weight))


def _check(targets: Sequence[Tensor], onlines: Sequence[Tensor], momentum: float | Tensor) -> None:
    if len(targets) != len(onlines):
        raise ValueError(f"target and online must be equally long, got {len(targets)} and {len(onlines)} tensors")
    if isinstance(momentum, Tensor):
        if momentum.numel() != 1:
            raise ValueError(f"momentum must be a number or a zero-dimensional tensor, got {tuple(momentum.shape)}")
    elif not 0.0 <= momentum <= 1.0:
        raise ValueError(f"momentum must be in [0, 1], got {momentum}")
    device = targets[0].device if targets else None
    for i, (t, o) in enumerate(zip(targets, onlines, strict=True)):
        if t.shape != o.shape:
            raise ValueError(f"target[{i}] and online[{i}] differ in shape: {tuple(t.shape)} and {tuple(o.shape)}")
        if t.device != device or o.device != device:
            raise ValueError(f"all tensors must be on {device}, got {t.device} and {o.device} at index {i}")
        if t.dtype not in DTYPES or o.dtype not in DTYPES:
            raise TypeError(
                f"target[{i}] and online[{i}] must be of floating dtype, 16 bits or more, got {t.dtype} and {o.dtype}"
            )
