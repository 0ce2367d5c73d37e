"""NT-Xent and InfoNCE without the matrix of logits: memory O(rows · width), 2.5 products instead of 5 on a GPU.

The public functions check their arguments and choose the arithmetic; four operators registered with `torch.library`
carry the work, so that `torch.compile(fullgraph=True)` and CUDA graphs see opaque, shape-inferable calls.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from .. import check
from ..arithmetic import product_dtype
from ..gather import Group, group_name
from . import operators  # noqa: F401  (registers torch.ops.fastssl.*)
from .reference import Metrics


@overload
def nt_xent(
    z: Tensor,
    *,
    temperature: float,
    views: int = ...,
    queue: Tensor | None = ...,
    group: Group = ...,
    normalize: bool = ...,
    return_metrics: Literal[False] = ...,
) -> Tensor: ...
@overload
def nt_xent(
    z: Tensor,
    *,
    temperature: float,
    views: int = ...,
    queue: Tensor | None = ...,
    group: Group = ...,
    normalize: bool = ...,
    return_metrics: Literal[True],
) -> tuple[Tensor, Metrics]: ...
def nt_xent(
    z: Tensor,
    *,
    temperature: float,
    views: int = 2,
    queue: Tensor | None = None,
    group: Group = None,
    normalize: bool = True,
    return_metrics: bool = False,
) -> Tensor | tuple[Tensor, Metrics]:
    """The normalised-temperature cross entropy of SimCLR (Chen et al. 2020, equation 1).

    z: [views·B, D] embeddings of any floating dtype, view-major: rows i, i + B, ... are the views of image i.
    temperature: τ > 0; logits are cosine / τ.
    views: V ≥ 2. A row's loss is its mean over its V − 1 positives of −log softmax_{j≠i}(s_ij / τ) at the positive.
    queue: [K, D] further negatives of every row, without gradient and already unit length if `normalize`: SimCLR v2's
        memory. The same on every rank; K = 0 is none.
    group: processes whose rows serve as negatives, each with the same B. None is the default process group, or this
        process alone where torch.distributed is not initialised; "local" never communicates.
    normalize: divide rows by their length first. False takes rows as they are (logits are inner products / τ).
    return_metrics: also return `Metrics`, from the same pass.

    Returns the fp32 scalar mean over all rows of all ranks. Products use bf16 or fp16 operands if `z` has that dtype or
    autocast asks for it; everything else is fp32. The gradient is that of the global mean times the number of ranks,
    so that averaging over ranks, as data-parallel training does, gives exactly the one-process gradient. A zero row
    counts as the zero vector and gets no gradient.

    Raises ValueError where shape, dtype, device, temperature, views or group make no sense.
    """
    check.rows("z", z)
    check.number("temperature", temperature)
    check.whole("views", views, 2)
    if z.shape[0] % views:
        raise ValueError(f"z has {z.shape[0]} rows, which is not a multiple of views={views}")
    negatives = [] if queue is None else [_negatives(queue, z, "z")]
    loss, statistics, *_ = torch.ops.fastssl.nt_xent_forward(
        z,
        negatives[0] if negatives and len(negatives[0]) else None,
        float(temperature),
        views,
        normalize,
        product_dtype(z, *negatives),
        return_metrics,
        torch.is_grad_enabled() and z.requires_grad,
        group_name(group),
    )
    return (loss, _metrics(statistics)) if return_metrics else loss


@overload
def info_nce(
    query: Tensor,
    key: Tensor,
    *,
    queue: Tensor | None = ...,
    temperature: float,
    group: Group = ...,
    normalize: bool = ...,
    return_metrics: Literal[False] = ...,
) -> Tensor: ...
@overload
def info_nce(
    query: Tensor,
    key: Tensor,
    *,
    queue: Tensor | None = ...,
    temperature: float,
    group: Group = ...,
    normalize: bool = ...,
    return_metrics: Literal[True],
) -> tuple[Tensor, Metrics]: ...
def info_nce(
    query: Tensor,
    key: Tensor,
    *,
    queue: Tensor | None = None,
    temperature: float,
    group: Group = None,
    normalize: bool = True,
    return_metrics: bool = False,
) -> Tensor | tuple[Tensor, Metrics]:
    """Contrast each query with its own key and with negatives (van den Oord et al. 2018; He et al. 2020, equation 1).

    query, key: [B, D] of any floating dtype; key i is the positive of query i. Either may be detached.
    queue: [K, D] negatives without gradient, already unit length if `normalize`; the only negatives if given (MoCo),
        and K = 0 leaves none. Kept in bf16 it needs no conversion under bf16 autocast. Without a queue the other keys,
        of all ranks in `group`, are the negatives (MoCo-v3, NNCLR, CLIP's one direction).
    temperature, group, normalize, return_metrics: as in `nt_xent`.

    Returns the fp32 scalar mean over all queries of all ranks, with the same gradient convention as `nt_xent`.
    Raises ValueError where shape, dtype, device, temperature or group make no sense.
    """
    check.rows("query", query)
    check.rows("key", key)
    check.number("temperature", temperature)
    if key.shape != query.shape:
        raise ValueError(f"key must have the shape of query {tuple(query.shape)}, got {tuple(key.shape)}")
    if key.device != query.device:
        raise ValueError(f"key must be on the device of query, {query.device}, got {key.device}")
    queue = None if queue is None else _negatives(queue, query, "query")
    others = [key] if queue is None else [key, queue]
    graph = torch.is_grad_enabled()
    loss, statistics, *_ = torch.ops.fastssl.info_nce_forward(
        query,
        key,
        queue,
        float(temperature),
        normalize,
        product_dtype(query, *others),
        return_metrics,
        graph and query.requires_grad,
        graph and key.requires_grad,
        group_name(group),
    )
    return (loss, _metrics(statistics)) if return_metrics else loss


def _negatives(queue: Tensor, rows: Tensor, name: str) -> Tensor:
    """`queue`, checked against the `rows` called `name` and without gradient."""
    check.rows("queue", queue, may_be_empty=True)
    if queue.shape[1] != rows.shape[1]:
        raise ValueError(f"queue must have the width of {name}, {rows.shape[1]}, got {queue.shape[1]}")
    if queue.device != rows.device:
        raise ValueError(f"queue must be on the device of {name}, {rows.device}, got {queue.device}")
    return queue.detach()


def _metrics(statistics: Tensor) -> Metrics:
    accuracy, entropy = statistics.detach().unbind()
    return Metrics(accuracy, entropy)
