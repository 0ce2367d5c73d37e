"""The operators as `torch.library` sees them: schema, shapes without data, and which operator is whose gradient."""

from __future__ import annotations

from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor

from ..gather import size_and_rank
from ..tile import padded_width
from . import cpu
from .blocks import one_pass
from .pairs import Pairs, padded_columns
from .reference import StopGradient


@torch.library.custom_op("fastssl::relic_forward", mutates_args=())
def relic_forward(
    online: Tensor,
    target: Tensor,
    negatives: Tensor | None,
    large: int,
    small: int,
    temperature: float,
    alpha: float,
    self_pairs: bool,
    stop_gradient: str,
    products: torch.dtype,
    metrics: bool,
    gradient: bool,
    group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> loss, the four `RelicMetrics` (or none), the rows of all negatives, and three numbers a prediction.

    The table is [3, (L + S)·L, B]: log of the denominator, constant of the gradient's weights, coefficient of the
    positive; each back end in its own units. gradient: whether one is wanted, which the CPU then makes at once where
    it can (`cpu.relic_forward`).
    """
    pairs = _pairs(target, large, small, temperature, alpha, self_pairs, stop_gradient, products)
    return _backend(online).relic_forward(online, target, negatives, pairs, metrics, gradient, group)


@relic_forward.register_fake
def _(
    online: Tensor,
    target: Tensor,
    negatives: Tensor | None,
    large: int,
    small: int,
    temperature: float,
    alpha: float,
    self_pairs: bool,
    stop_gradient: str,
    products: torch.dtype,
    metrics: bool,
    gradient: bool,
    group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, width = target.shape[0] // large, target.shape[1]
    count = size_and_rank(group)[0] * batch if negatives is None else negatives.shape[0]
    pairs = _pairs(target, large, small, temperature, alpha, self_pairs, stop_gradient, products)
    if online.device.type == "cpu" and gradient and one_pass(pairs, count):
        return (
            _fp32(online),
            _fp32(online, 4 if metrics else 0),
            _fp32(online, *online.shape),
            _fp32(online, 3, 0, batch),
        )
    if online.device.type == "cpu":
        columns = _fp32(online, large * count, width)
    else:
        columns = online.new_empty((large * padded_columns(count), padded_width(width)), dtype=products)
    table = _fp32(online, 3, (large + small) * large, batch)
    return _fp32(online), _fp32(online, 4 if metrics else 0), columns, table


@torch.library.custom_op("fastssl::relic_backward", mutates_args=())
def relic_backward(
    grad: Tensor,
    online: Tensor,
    target: Tensor,
    negatives: Tensor | None,
    columns: Tensor,
    table: Tensor,
    large: int,
    small: int,
    temperature: float,
    alpha: float,
    self_pairs: bool,
    stop_gradient: str,
    products: torch.dtype,
    group: str,
) -> Tensor:
    """Gradient of `online`, in its dtype, for this rank's images; no communication."""
    pairs = _pairs(target, large, small, temperature, alpha, self_pairs, stop_gradient, products)
    return _backend(online).relic_backward(grad, online, target, negatives, columns, table, pairs, group)


@relic_backward.register_fake
def _(grad: Tensor, online: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(online, memory_format=torch.contiguous_format)


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    online, target, negatives, *options, _, _, group = inputs
    ctx.save_for_backward(online, target, negatives, *output[2:])
    ctx.options = (*options, group)


def _gradient(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return relic_backward(grad, *ctx.saved_tensors, *ctx.options), *(None,) * 12


relic_forward.register_autograd(_gradient, setup_context=_context)


def _pairs(
    target: Tensor,
    large: int,
    small: int,
    temperature: float,
    alpha: float,
    self_pairs: bool,
    stop_gradient: str,
    products: torch.dtype,
) -> Pairs:
    stopped = cast(StopGradient, stop_gradient)
    return Pairs(large, small, len(target) // large, temperature, alpha, self_pairs, stopped, products)


def _backend(x: Tensor) -> ModuleType:
    if x.is_cuda:
        from . import launch  # imports triton, which not every platform has

        return launch
    if x.device.type != "cpu":
        raise NotImplementedError(f"RELIC runs on CPU and CUDA (or ROCm) tensors, not on {x.device.type}")
    return cpu


def _fp32(like: Tensor, *shape: Any) -> Tensor:
    return like.new_empty(shape, dtype=torch.float32)
