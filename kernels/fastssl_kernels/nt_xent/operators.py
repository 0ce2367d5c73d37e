"""The operators as `torch.library` sees them: schema, shapes without data, and which operator is whose gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import cpu
from .blocked import Logits
from .gather import size_and_rank


@torch.library.custom_op("fastssl::nt_xent_forward", mutates_args=(), device_types="cpu")
def nt_xent_forward(
    z: Tensor, temperature: float, views: int, normalize: bool, products: torch.dtype, metrics: bool, group: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return cpu.nt_xent_forward(z, Logits(temperature, normalize, products), views, metrics, group)


@nt_xent_forward.register_fake
def _(
    z: Tensor, temperature: float, views: int, normalize: bool, products: torch.dtype, metrics: bool, group: str
) -> Any:
    ranks, _ = size_and_rank(group)
    rows, width = z.shape
    columns = _fp32(z, ranks * rows, width).to(_columns_dtype(z, products, group))
    factor = _fp32(z, rows if normalize else 0)
    return _fp32(z), _fp32(z, 2 if metrics else 0), columns, factor, _fp32(z, ranks * rows), _fp32(z, rows)


@torch.library.custom_op("fastssl::nt_xent_backward", mutates_args=(), device_types="cpu")
def nt_xent_backward(
    grad: Tensor,
    z: Tensor,
    columns: Tensor,
    factor: Tensor,
    lse: Tensor,
    share: Tensor,
    temperature: float,
    views: int,
    normalize: bool,
    products: torch.dtype,
    group: str,
) -> Tensor:
    return cpu.nt_xent_backward(
        grad, z, columns, factor, lse, share, Logits(temperature, normalize, products), views, group
    )


@nt_xent_backward.register_fake
def _(grad: Tensor, z: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(z, memory_format=torch.contiguous_format)


def _nt_xent_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    z, temperature, views, normalize, products, _, group = inputs
    ctx.save_for_backward(z, *output[2:])
    ctx.options = (temperature, views, normalize, products, group)


def _nt_xent_gradient(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return nt_xent_backward(grad, *ctx.saved_tensors, *ctx.options), *(None,) * 6


nt_xent_forward.register_autograd(_nt_xent_gradient, setup_context=_nt_xent_context)


@torch.library.custom_op("fastssl::info_nce_forward", mutates_args=(), device_types="cpu")
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    logits = Logits(temperature, normalize, products)
    return cpu.info_nce_forward(query, key, queue, logits, metrics, query_gradient, key_gradient, group)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    ranks, _ = size_and_rank(group)
    rows, width = query.shape
    attraction = _fp32(query, rows, width) if query_gradient else _fp32(query, 0)
    queries = _fp32(query, ranks * rows, width + 1) if key_gradient and queue is None else _fp32(query, 0)
    return _fp32(query), _fp32(query, 2 if metrics else 0), attraction, _fp32(query, rows), queries


@torch.library.custom_op("fastssl::info_nce_query_backward", mutates_args=(), device_types="cpu")
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
    return cpu.info_nce_query_backward(grad, query, key, attraction, share, Logits(temperature, normalize, products))


@info_nce_query_backward.register_fake
def _(grad: Tensor, query: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@torch.library.custom_op("fastssl::info_nce_key_backward", mutates_args=(), device_types="cpu")
def info_nce_key_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    share: Tensor,
    queries: Tensor,
    temperature: float,
    normalize: bool,
    products: torch.dtype,
    group: str,
) -> Tensor:
    return cpu.info_nce_key_backward(grad, query, key, share, queries, Logits(temperature, normalize, products), group)


@info_nce_key_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(key, memory_format=torch.contiguous_format)


def _info_nce_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, key, _, temperature, normalize, products, *_, group = inputs
    _, _, attraction, share, queries = output
    ctx.save_for_backward(query, key, attraction, share, queries)
    ctx.options = (temperature, normalize, products)
    ctx.group = group


def _info_nce_gradient(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    query, key, attraction, share, queries = ctx.saved_tensors
    by_query = by_key = None
    if ctx.needs_input_grad[0]:
        by_query = info_nce_query_backward(grad, query, key, attraction, share, *ctx.options)
    if ctx.needs_input_grad[1]:
        by_key = info_nce_key_backward(grad, query, key, share, queries, *ctx.options, ctx.group)
    return by_query, by_key, *(None,) * 8


info_nce_forward.register_autograd(_info_nce_gradient, setup_context=_info_nce_context)


def _fp32(like: Tensor, *shape: Any) -> Tensor:
    return like.new_empty(shape, dtype=torch.float32)


def _columns_dtype(z: Tensor, products: torch.dtype, group: str) -> torch.dtype:
    """A GPU keeps rows in the dtype of the products; a CPU does so only to send them."""
    return products if group or z.device.type == "cuda" else torch.float32
