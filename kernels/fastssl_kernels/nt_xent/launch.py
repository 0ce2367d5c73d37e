"""The operator bodies on a GPU: shapes, tiles and grids around the Triton kernels.

The same four functions as in `cpu`. Rows that products read are kept in the padded layout of `kernel`, in the dtype of
the products. Nothing here waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..gather import gather_rows, size_and_rank
from ..tile import padded_width
from .launch_gradient import gradient_of, through_norm
from .launch_rows import as_sums, column_weight, gathered_columns, queue_columns, unit_rows
from .launch_sums import finish, rectangle, triangle
from .logits import Logits


def nt_xent_forward(
    x: Tensor, queue: Tensor | None, logits: Logits, views: int, metrics: bool, gradient: bool, group: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """-> loss, [accuracy, entropy], columns, factor, weight of every column, share, attraction; as on the CPU."""
    x = x.contiguous()
    batch = len(x) // views
    z, factor = unit_rows(x, logits, views)
    attract = queue is not None and gradient
    online = logits.online_with_attraction if attract else logits.online
    if online or metrics or group:
        columns, width, first = gathered_columns(z, views, batch, group)
        partial, _ = rectangle(z, columns, logits, views, batch, width, first, online, metrics, attract=False)
    else:
        columns, partial = z, triangle(z, logits, views, batch)
    attracted = None
    if queue is not None:
        # Slots of the queue come first, as only they have attractions.
        negatives, width = queue_columns(queue, logits), len(queue)
        more, attracted = rectangle(
            z, negatives, logits, 1, batch, width, 0, online, metrics, attract=attract, exclude=False
        )
        partial = torch.cat([more, partial])
    table, share, weight, attraction = finish(partial, attracted, x, factor, z, None, logits, views, online, metrics)
    if group:
        table = gather_rows(table, views, group)
        weight = column_weight(table[:, 1], views, logits, online)
    return *_means(table), columns, factor, weight, share, attraction


def nt_xent_backward(
    grad: Tensor,
    x: Tensor,
    columns: Tensor,
    factor: Tensor,
    weight: Tensor,
    share: Tensor,
    attraction: Tensor,
    logits: Logits,
    views: int,
    group: str,
) -> Tensor:
    """Gradient of `x` [V·B, D]; one kernel unless rows are few or wide or there is a queue."""
    x = x.contiguous()
    batch = len(x) // views
    size, rank = size_and_rank(group)
    z = unit_rows(x, logits, views)[0] if group else columns
    attract = attraction.numel() > 0
    online = logits.online_with_attraction if attract else logits.online
    gradient = gradient_of(
        z, columns, weight, x, factor, None, share, grad, logits, views, size * batch, rank * batch, online
    )
    if attract:
        gradient += through_norm(as_sums(attraction), x, x, torch.zeros_like(share), grad, logits, len(x))
    return gradient


def info_nce_forward(
    query: Tensor,
    key: Tensor,
    queue: Tensor | None,
    logits: Logits,
    metrics: bool,
    query_gradient: bool,
    key_gradient: bool,
    group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """-> loss, [accuracy, entropy], attraction [B, D], share [B], queries, weight of every query; as on the CPU."""
    query, key = query.contiguous(), key.contiguous()
    (q, q_factor), (k, k_factor) = unit_rows(query, logits, 1), unit_rows(key, logits, 1)
    batch, online = len(query), logits.online_with_attraction
    if queue is not None:
        columns, width, first = queue_columns(queue, logits), len(queue), 0
    else:
        columns, width, first = gathered_columns(k, 1, batch, group)
    partial, attracted = rectangle(
        q, columns, logits, 1, batch, width, first, online, metrics, attract=query_gradient, exclude=queue is None
    )
    table, share, weight, attraction = finish(
        partial, attracted, query, q_factor, q, (key, k_factor, k), logits, 1, online, metrics
    )
    table = gather_rows(table, 1, group)
    queries = query.new_empty(0, dtype=torch.float32)
    if not (key_gradient and queue is None):
        weight = query.new_empty(0, dtype=torch.float32)
    elif group:
        queries, weight = gathered_columns(q, 1, batch, group)[0], column_weight(table[:, 1], 1, logits, online)
    else:
        queries = q
    return *_means(table), attraction, share, queries, weight


def info_nce_query_backward(
    grad: Tensor, query: Tensor, key: Tensor, attraction: Tensor, share: Tensor, logits: Logits
) -> Tensor:
    query, key = query.contiguous(), key.contiguous()
    return through_norm(as_sums(attraction), query, key, share, grad, logits, len(query))


def info_nce_key_backward(
    grad: Tensor, query: Tensor, key: Tensor, share: Tensor, queries: Tensor, weight: Tensor, logits: Logits, group: str
) -> Tensor:
    query, key = query.contiguous(), key.contiguous()
    batch, width = key.shape
    if not queries.numel():
        sums = key.new_zeros((1, batch, padded_width(width)), dtype=torch.float32)
        return through_norm(sums, key, query, share, grad, logits, batch)
    size, rank = size_and_rank(group)
    k, factor = unit_rows(key, logits, 1)
    return gradient_of(
        k,
        queries,
        weight,
        key,
        factor,
        query,
        share,
        grad,
        logits,
        1,
        size * batch,
        rank * batch,
        logits.online_with_attraction,
    )


def _means(table: Tensor) -> tuple[Tensor, Tensor]:
    return table[:, 0].mean(), table[:, 2:].mean(0)
