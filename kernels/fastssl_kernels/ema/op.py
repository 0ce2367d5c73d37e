"""Exponential moving average of parameter lists: validation and dispatch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from ..check import DTYPES
from . import native
from .flat import is_dense, same_order
from .scalar import host_scalar

LAYOUT, DENSE = attrgetter("layout"), {torch.strided}


def ema_update_(target: Iterable[Tensor], online: Iterable[Tensor], momentum: float | Tensor) -> None:
    """target ← momentum · target + (1 − momentum) · online, in place, tensor by tensor.

    One kernel launch on CUDA for any number of tensors of one pair of dtypes. On the CPU one sweep in C where all are
    dense fp32 tensors and the momentum is above one half, else torch's interpolation, whose numbers are the same.
    Batch-norm statistics are averaged only if the caller lists them (the methods of this field do not).

    Args:
        target: tensors to update, of floating dtype, any shapes and memory layouts. Arithmetic is float32, or float64
            where one of the pair is; the result is rounded once, to the target's dtype.
        online: as many tensors, of the same shapes and device; dtypes may differ.
        momentum: in [0, 1], a number or a zero-dimensional tensor (on CUDA it is read by the kernel, without a
            synchronisation; a float64 scalar keeps 1 − momentum exact).

    Raises:
        ValueError: lists of different length, shapes or devices that differ, momentum out of range.
        TypeError: a tensor that is not dense or not of floating dtype.
    """
    targets, onlines = list(target), list(online)
    check_momentum("momentum", momentum)
    alike = _check_lists(targets, onlines)
    if not targets:
        return
    if targets[0].device.type in ("cpu", "meta"):
        number = host_scalar(momentum, "momentum")
        check_momentum("momentum", number)
        _without_gradients(_on_cpu, targets, onlines, 1.0 - number, alike)
    else:
        from .launch import ema_launch  # Triton does not exist everywhere that torch does

        _without_gradients(ema_launch, targets, onlines, momentum)


def _without_gradients(update: Callable[..., None], *arguments: Any) -> None:
    """What `torch.no_grad` does, without the objects that it makes: beside torch's own call they are noticed."""
    before = torch.is_grad_enabled()
    torch._C._set_grad_enabled(False)
    try:
        update(*arguments)
    finally:
        torch._C._set_grad_enabled(before)


def _on_cpu(targets: list[Tensor], onlines: list[Tensor], weight: float, alike: bool) -> None:
    if not alike and [t.dtype for t in targets] != [o.dtype for o in onlines]:
        for t, o in zip(targets, onlines, strict=True):
            wide = torch.float64 if torch.float64 in (t.dtype, o.dtype) else torch.float32
            t.copy_(torch.lerp(t.to(wide), o.to(wide), weight))
        return
    # Half of the weight and above, torch.lerp counts from the other end, so that 1 copies.
    if not (alike and weight < 0.5 and _can_sweep(targets, onlines) and native.average(targets, onlines, weight)):
        torch._foreach_lerp_(targets, onlines, weight)


def _can_sweep(targets: list[Tensor], onlines: list[Tensor]) -> bool:
    """Whether the library in C takes lists of one dtype: fp32, plain, pair by pair of one memory order."""
    return (
        native.available()
        and targets[0].dtype == torch.float32
        and not _watched()
        and {*map(type, targets), *map(type, onlines)} <= {Tensor, torch.nn.Parameter}
        and not any(map(Tensor.is_neg, targets))
        and not any(map(Tensor.is_neg, onlines))
        and (torch.is_inference_mode_enabled() or not any(map(Tensor.is_inference, targets)))
        and _one_order(targets, onlines)
    )


def _watched() -> bool:
    """Whether somebody records or differentiates operations, who is to be shown torch's."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._ops._len_torch_dispatch_stack_pre_dispatch() > 0
        or torch.autograd.forward_ad._current_level >= 0
    )


def _one_order(targets: list[Tensor], onlines: list[Tensor]) -> bool:
    """Whether all tensors are dense, and element lies beside element pair by pair."""
    if [*map(Tensor.stride, targets)] == [*map(Tensor.stride, onlines)]:
        return all(map(is_dense, targets))
    return all(is_dense(t) and is_dense(o) and same_order(t, o) for t, o in zip(targets, onlines, strict=True))


def _check_lists(targets: list[Tensor], onlines: list[Tensor]) -> bool:
    """Whether all tensors are of one dtype, as usual: then whole lists are compared, and nothing is taken one by one.

    The loop over pairs would be noticed beside the update itself.
    """
    if len(targets) != len(onlines):
        raise ValueError(f"target and online must be equally long, got {len(targets)} and {len(onlines)} tensors")
    if not torch.compiler.is_compiling() and _alike(targets, onlines):
        return True
    for i, (t, o) in enumerate(zip(targets, onlines, strict=True)):
        _check_pair(i, t, o, targets[0])
    return False


def _alike(targets: list[Tensor], onlines: list[Tensor]) -> bool:
    """Whether all are dense, of one device and floating dtype, pairs of one shape; other lists may be right too."""
    together: list[Tensor | None] = [*targets, *onlines]
    if not together:
        return True
    try:
        if [*map(Tensor.size, targets)] != [*map(Tensor.size, onlines)]:
            return False
        kinds = torch._C._group_tensors_by_device_and_dtype([together], False)
    except (TypeError, RuntimeError):  # RuntimeError: nested tensors have no size
        return False
    return len(kinds) == 1 and all(dtype in DTYPES for _, dtype in kinds) and {*map(LAYOUT, together)} == DENSE


def _check_pair(i: int, t: Tensor, o: Tensor, first: Tensor) -> None:
    for name, tensor in (("target", t), ("online", o)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}[{i}] must be a tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided or tensor.is_nested:
            kind = "a nested tensor" if tensor.is_nested else f"layout {tensor.layout}"
            raise TypeError(f"{name}[{i}] must be a dense tensor, got {kind}: pass tensor.to_dense() or its parts")
    if t.shape != o.shape:
        raise ValueError(f"target[{i}] and online[{i}] differ in shape: {tuple(t.shape)} and {tuple(o.shape)}")
    if t.device != first.device or o.device != first.device:
        raise ValueError(f"all tensors must be on {first.device}, got {t.device} and {o.device} at index {i}")
    if t.dtype not in DTYPES or o.dtype not in DTYPES:
        raise TypeError(
            f"target[{i}] and online[{i}] must be of floating dtype, 16 bits or more, got {t.dtype} and {o.dtype}"
        )


def check_momentum(name: str, momentum: float | Tensor) -> None:
    """In [0, 1]; of a tensor on a device nothing is read."""
    if isinstance(momentum, Tensor):
        if momentum.ndim != 0 or not momentum.is_floating_point():
            got = f"{momentum.dtype} {tuple(momentum.shape)}"
            raise ValueError(f"{name} must be a number or a zero-dimensional tensor of floating dtype, got {got}")
        return
    try:
        within = 0.0 <= momentum <= 1.0
    except TypeError:
        within = False
    if not within:
        raise ValueError(f"{name} must be in [0, 1], got {momentum!r}")
