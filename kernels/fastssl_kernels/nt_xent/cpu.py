"""The operator bodies on the CPU: block sums from `blocked`, positives and normalisation in fp32 around them.

A row's *share* is the probability of all its negatives together, 1 − Σ_p exp(l_ip − lse_i). It is kept beside lse
because it is the whole gradient of a nearly solved task, and cannot be recovered from 1 − p without losing its digits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..gather import gather_rows, size_and_rank
from ..rows import unit_rows
from .blocked import (
    Diagonals,
    Sums,
    rectangle_gradient,
    rectangle_sums,
    triangle_gradient,
    triangle_sums,
)
from .logits import Logits
from .reference import TIE


def nt_xent_forward(
    x: Tensor, queue: Tensor | None, logits: Logits, views: int, metrics: bool, gradient: bool, group: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """-> loss, [accuracy, entropy], columns [V·W·B, D], factor [V·B], lse of every column, share [V·B], attraction.

    The attraction [V·B, D] is Σ_n p_in n over the queue; it is empty unless there is one and a gradient is wanted.
    """
    z, factor = _rows(x, logits)
    batch = len(z) // views
    columns = gather_rows(z.to(logits.products), views, group) if group else z
    if group:
        exclude = _diagonals(views, batch, group)
        sums = rectangle_sums(z, columns, logits, metrics=metrics, exclude=exclude, attraction=False)
    else:
        sums = triangle_sums(z, batch, logits, metrics)
    if queue is not None:
        sums = sums + rectangle_sums(z, queue, logits, metrics=metrics, exclude=None, attraction=gradient)
    positives = _view_products(z, views) / logits.temperature
    rounded = _view_products(_rounded(z, logits), views) if metrics else None
    own = _row_table(sums, positives, logits, rounded)
    table, share = gather_rows(own, views, group), own[:, 0].clone()
    return *_means(table), columns, factor, table[:, 2].clone(), share, _attraction(sums, share)


def nt_xent_backward(
    grad: Tensor,
    x: Tensor,
    columns: Tensor,
    factor: Tensor,
    lse: Tensor,
    share: Tensor,
    attraction: Tensor,
    logits: Logits,
    views: int,
    group: str,
) -> Tensor:
    """Gradient of `x` [V·B, D] for this rank's rows, scaled so that the average over ranks is the exact one."""
    batch = len(x) // views
    if group:
        exclude = _diagonals(views, batch, group)
        z, own = _rows(x, logits)[0], _local(lse, exclude)
        total = rectangle_gradient(z, columns, logits, exclude=exclude, lse_rows=own, lse_columns=lse)
    else:
        z, own = columns, lse
        total = triangle_gradient(z, batch, lse, logits)
    by_view, own, share = z.view(views, batch, -1), own.view(views, batch), share.view(views, batch)
    for step in range(1, views):
        other = by_view.roll(-step, 0)
        if views == 2:
            weight = -(share + share.roll(-1, 0))
        else:
            positive = (by_view * other).sum(2) / logits.temperature
            weight = (positive - own).exp_() + (positive - own.roll(-step, 0)).exp_() - 2.0 / (views - 1)
        total.view_as(by_view).addcmul_(weight[..., None], other)
    if attraction.numel():
        total += attraction
    scale = grad / (len(x) * logits.temperature)
    return _through_norm(total.mul_(scale), z, factor, logits).to(x.dtype)


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
    """-> loss, [accuracy, entropy], attraction [B, D], share [B], all ranks' queries [W·B, D], their lse [W·B].

    The attraction Σ_n p_in n is all that the gradient of the query needs from the negatives; it is empty unless wanted.
    The last two are empty unless keys are negatives of other rows and want a gradient.
    """
    (q, _), (k, _) = _rows(query, logits), _rows(key, logits)
    exclude = None if queue is not None else _diagonals(1, len(q), group)
    columns = queue if queue is not None else gather_rows(k.to(logits.products) if group else k, 1, group)
    sums = rectangle_sums(q, columns, logits, metrics=metrics, exclude=exclude, attraction=query_gradient)
    positive = (q * k).sum(1)[None] / logits.temperature
    rounded = (_rounded(q, logits) * _rounded(k, logits)).sum(1)[None] if metrics else None
    table = _row_table(sums, positive, logits, rounded)
    share = table[:, 0].clone()
    attraction = _attraction(sums, share)
    table = gather_rows(table, 1, group)
    queries, lse = q.new_empty(0), q.new_empty(0)
    if key_gradient and queue is None:
        queries, lse = gather_rows(q.to(logits.products) if group else q, 1, group), table[:, 2].clone()
    return *_means(table), attraction, share, queries, lse


def info_nce_query_backward(
    grad: Tensor, query: Tensor, key: Tensor, attraction: Tensor, share: Tensor, logits: Logits
) -> Tensor:
    """Gradient of `query` [B, D]: Σ_n p_in n − (1 − p_ii) k_i, through the normalisation."""
    (q, factor), (k, _) = _rows(query, logits), _rows(key, logits)
    total = torch.addcmul(attraction, share[:, None], k, value=-1.0).mul_(grad / (len(q) * logits.temperature))
    return _through_norm(total, q, factor, logits).to(query.dtype)


def info_nce_key_backward(
    grad: Tensor, query: Tensor, key: Tensor, share: Tensor, queries: Tensor, lse: Tensor, logits: Logits, group: str
) -> Tensor:
    """Gradient of `key` [B, D]: as the positive of its query and, without a queue, as a negative of all others."""
    (q, _), (k, factor) = _rows(query, logits), _rows(key, logits)
    total = share[:, None] * -q
    if queries.numel():
        exclude = _diagonals(1, len(k), group)
        total += rectangle_gradient(k, queries, logits, exclude=exclude, lse_columns=lse)
    total.mul_(grad / (len(q) * logits.temperature))
    return _through_norm(total, k, factor, logits).to(key.dtype)


def _rows(x: Tensor, logits: Logits) -> tuple[Tensor, Tensor]:
    """fp32 rows, unit if cosines are asked for, and 1 / ‖x‖ (empty where rows are taken as they are)."""
    if logits.normalize:
        return unit_rows(x.float())
    # A copy: an operator's result must not be its argument.
    rows = x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return rows, x.new_empty(0, dtype=torch.float32)


def _rounded(z: Tensor, logits: Logits) -> Tensor:
    """Rows as a product sees them, so that exactly equal rows tie with the negatives they equal."""
    return z.bfloat16().float() if logits.products == torch.bfloat16 else z


def _through_norm(gradient: Tensor, z: Tensor, factor: Tensor, logits: Logits) -> Tensor:
    """d‖x‖-normalisation: dx = (dz − z (z·dz)) / ‖x‖; overwrites `gradient`."""
    if not logits.normalize:
        return gradient
    along = (z * gradient).sum(1, keepdim=True)
    return gradient.addcmul_(z, along, value=-1.0).mul_(factor[:, None])


def _view_products(z: Tensor, views: int) -> Tensor:
    """[V − 1, V·B]: the product of each row with its image's next view, the one after that, and so on."""
    by_view = z.view(views, -1, z.shape[1])
    return torch.stack([(by_view * by_view.roll(-step, 0)).sum(2).view(-1) for step in range(1, views)])


def _row_table(sums: Sums, positives: Tensor, logits: Logits, rounded: Tensor | None) -> Tensor:
    """Columns share, loss, lse, and with metrics correct (0 or 1) and entropy: [N, 3 or 5]."""
    positive = positives.logsumexp(0)
    margin = sums.log_sum - positive
    lse, share = torch.logaddexp(sums.log_sum, positive), margin.sigmoid()
    columns = [share, F.softplus(margin) + (positive - positives.mean(0)), lse]
    if sums.largest is not None and sums.weighted is not None and rounded is not None:
        best = rounded.amax(0) / logits.temperature
        expected = sums.weighted * share + ((positives - lse).exp() * positives).sum(0)
        columns += [(best > sums.largest + TIE / logits.temperature).float(), lse - expected]
    return torch.stack(columns, 1)


def _attraction(sums: Sums, share: Tensor) -> Tensor:
    """Σ_n p_in n over the negatives; empty where the sums have none."""
    return share.new_empty(0) if sums.attraction is None else sums.attraction.mul_(share[:, None])


def _means(table: Tensor) -> tuple[Tensor, Tensor]:
    means = table.mean(0)
    return means[1].clone(), means[3:].clone()


def _diagonals(views: int, batch: int, group: str) -> Diagonals:
    size, rank = size_and_rank(group)
    return Diagonals(views, batch, size * batch, rank * batch)


def _local(columns: Tensor, where: Diagonals) -> Tensor:
    """This rank's rows out of those of all ranks."""
    by_view = columns.view(where.views, where.width, *columns.shape[1:])
    return by_view[:, where.first : where.first + where.batch].reshape(-1, *columns.shape[1:])
