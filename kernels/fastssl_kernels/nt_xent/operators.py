"""The operators as `torch.library` sees them: schema, shapes without data, and which operator is whose gradient."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..gather import size_and_rank
from ..tile import padded_rows, padded_width
from . import cpu
from .logits import Logits


@torch.library.custom_op("fastssl::nt_xent_forward", mutates_args=())
def nt_xent_forward(
    z: Tensor,
    queue: Tensor | None,
    temperature: float,
    views: int,
    normalize: bool,
    products: torch.dtype,
    metrics: bool,
    gradient: bool,
    group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    logits = Logits(temperature, normalize, products)
    return _backend(z).nt_xent_forward(z, queue, logits, views, metrics, gradient, group)


@nt_xent_forward.register_fake
def _(
    z: Tensor,
    queue: Tensor | None,
    temperature: float,
    views: int,
    normalize: bool,
    products: torch.dtype,
    metrics: bool,
    gradient: bool,
    group: str,
) -> Any:
    columns, lse = _saved_columns(z, views, products, group)
    factor = _fp32(z, z.shape[0] if normalize else 0)
    attraction = _fp32(z, *z.shape) if queue is not None and gradient else _fp32(z, 0)
    return _fp32(z), _fp32(z, 2 if metrics else 0), columns, factor, lse, _fp32(z, z.shape[0]), attraction


@torch.library.custom_op("fastssl::nt_xent_backward", mutates_args=())
def nt_xent_backward(
    grad: Tensor,
    z: Tensor,
    columns: Tensor,
    factor: Tensor,
    lse: Tensor,
    share: Tensor,
    attraction: Tensor,
    temperature: float,
    views: int,
    normalize: bool,
    products: torch.dtype,
    group: str,
) -> Tensor:
    logits = Logits(temperature, normalize, products)
    return _backend(z).nt_xent_backward(grad, z, columns, factor, lse, share, attraction, logits, views, group)


@nt_xent_backward.register_fake
def _(grad: Tensor, z: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(z, memory_format=torch.contiguous_format)


def _nt_xent_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    z, _, temperature, views, normalize, products, _, _, group = inputs
    ctx.save_for_backward(z, *output[2:])
    ctx.options = (temperature, views, normalize, products, group)


def _nt_xent_gradient(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return nt_xent_backward(grad, *ctx.saved_tensors, *ctx.options), *(None,) * 8


nt_xent_forward.register_autograd(_nt_xent_gradient, setup_context=_nt_xent_context)


@torch.library.custom_op("fastssl::info_nce_forward", mutates_args=())
def info_nce_forward(
    query: Tensor,
    key: Tensor,
    queue: Tensor | None,
    temperature: float,
    normalize: bool,
    products: torch.dtype,
    metrics: bool,
    query_gradient: bool,
    key_gradient: bool,
    group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    logits = Logits(temperature, normalize, products)
    return _backend(query).info_nce_forward(query, key, queue, logits, metrics, query_gradient, key_gradient, group)


@info_nce_forward.register_fake
def _(
    query: Tensor,
    key: Tensor,
    queue: Tensor | None,
    temperature: float,
    normalize: bool,
    products: torch.dtype,
    metrics: bool,
    query_gradient: bool,
    key_gradient: bool,
    group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, width = query.shape
    attraction = _fp32(query, rows, width) if query_gradient else _fp32(query, 0)
    queries, lse = _fp32(query, 0), _fp32(query, 0)
    if key_gradient and queue is None:
        queries, lse = _saved_columns(query, 1, products, group)
    return _fp32(query), _fp32(query, 2 if metrics else 0), attraction, _fp32(query, rows), queries, lse


@torch.library.custom_op("fastssl::info_nce_query_backward", mutates_args=())
def info_nce_query_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    attraction: Tensor,
    share: Tensor,
    temperature: float,
    normalize: bool,
    products: torch.dtype,
) -> Tensor:
    logits = Logits(temperature, normalize, products)
    return _backend(query).info_nce_query_backward(grad, query, key, attraction, share, logits)


@info_nce_query_backward.register_fake
def _(grad: Tensor, query: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@torch.library.custom_op("fastssl::info_nce_key_backward", mutates_args=())
def info_nce_key_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    share: Tensor,
    queries: Tensor,
    lse: Tensor,
    temperature: float,
    normalize: bool,
    products: torch.dtype,
    group: str,
) -> Tensor:
    logits = Logits(temperature, normalize, products)
    return _backend(query).info_nce_key_backward(grad, query, key, share, queries, lse, logits, group)


@info_nce_key_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(key, memory_format=torch.contiguous_format)


def _info_nce_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, key, _, temperature, normalize, products, *_, group = inputs
    ctx.save_for_backward(query, key, *output[2:])
    ctx.options = (temperature, normalize, products)
    ctx.group = group


def _info_nce_gradient(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    query, key, attraction, share, queries, lse = ctx.saved_tensors
    by_query = by_key = None
    if ctx.needs_input_grad[0]:
        by_query = info_nce_query_backward(grad, query, key, attraction, share, *ctx.options)
    if ctx.needs_input_grad[1]:
        by_key = info_nce_key_backward(grad, query, key, share, queries, lse, *ctx.options, ctx.group)
    return by_query, by_key, *(None,) * 8


info_nce_forward.register_autograd(_info_nce_gradient, setup_context=_info_nce_context)


def _backend(x: Tensor) -> ModuleType:
    if x.is_cuda:
        from . import launch  # imports triton, which not every platform has

        return launch
    if x.device.type != "cpu":
        raise NotImplementedError(f"NT-Xent runs on CPU and CUDA (or ROCm) tensors, not on {x.device.type}")
    return cpu


def _fp32(like: Tensor, *shape: Any) -> Tensor:
    return like.new_empty(shape, dtype=torch.float32)


def _saved_columns(x: Tensor, segments: int, products: torch.dtype, group: str) -> tuple[Tensor, Tensor]:
    """What the forward pass keeps of every rank's rows: the rows, and one number each.

    A GPU pads both for its tiles and keeps rows in the dtype of the products; a CPU rounds rows only to send them.
    """
    ranks, _ = size_and_rank(group)
    batch, width = ranks * x.shape[0] // segments, x.shape[1]
    if x.device.type == "cpu":
        dtype = products if group else torch.float32
        return x.new_empty((segments * batch, width), dtype=dtype), _fp32(x, segments * batch)
    rows = segments * padded_rows(batch)
    return x.new_empty((rows, padded_width(width)), dtype=products), _fp32(x, rows)
