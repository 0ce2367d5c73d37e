"""The operator bodies on a GPU: shapes, tiles and grids around the Triton kernels.

The same four functions as in `cpu`. Rows that products read are kept in the padded layout of `kernel`, in the dtype of
the products. Nothing here waits for the device.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from ..device import processors, target_of
from ..gather import gather_rows, size_and_rank
from ..rows import SMALLEST_NORM
from ..rows_kernel import unit_rows_kernel, unit_rows_per_program
from ..tile import PADDING, Tile, launch_options, padded_rows, padded_width
from .kernel import rectangle_kernel, triangle_kernel
from .kernel_finish import finish_kernel
from .kernel_gradient import gradient_kernel, through_norm_kernel
from .logits import Logits
from .reference import TIE
from .tiles import tile_for

LOG2E = math.log2(math.e)
# Partial sums of the triangle, in rows: at most this many times the fp32 row sums themselves.
SLOTS = 128
# fp16 weights are computed 2^14 times too large: at most 2^15, and small ones stay normal.
HALF_RESCALE = 14


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
        columns, width, first = _columns(z, views, batch, group)
        partial, _ = _rectangle(z, columns, logits, views, batch, width, first, online, metrics, attract=False)
    else:
        columns, partial = z, _triangle(z, logits, views, batch)
    attracted = None
    if queue is not None:
        # Slots of the queue come first, as only they have attractions.
        negatives, width = _queue_columns(queue, logits), len(queue)
        more, attracted = _rectangle(
            z, negatives, logits, 1, batch, width, 0, online, metrics, attract=attract, exclude=False
        )
        partial = torch.cat([more, partial])
    table, share, weight, attraction = _finish(partial, attracted, x, factor, z, None, logits, views, online, metrics)
    if group:
        table = gather_rows(table, views, group)
        weight = _column_weight(table[:, 1], views, logits, online)
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
    gradient = _gradient(
        z, columns, weight, x, factor, None, share, grad, logits, views, size * batch, rank * batch, online
    )
    if attract:
        gradient += _through_norm(_as_sums(attraction), x, x, torch.zeros_like(share), grad, logits, len(x))
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
        columns, width, first = _queue_columns(queue, logits), len(queue), 0
    else:
        columns, width, first = _columns(k, 1, batch, group)
    partial, attracted = _rectangle(
        q, columns, logits, 1, batch, width, first, online, metrics, attract=query_gradient, exclude=queue is None
    )
    table, share, weight, attraction = _finish(
        partial, attracted, query, q_factor, q, (key, k_factor, k), logits, 1, online, metrics
    )
    table = gather_rows(table, 1, group)
    queries = query.new_empty(0, dtype=torch.float32)
    if not (key_gradient and queue is None):
        weight = query.new_empty(0, dtype=torch.float32)
    elif group:
        queries, weight = _columns(q, 1, batch, group)[0], _column_weight(table[:, 1], 1, logits, online)
    else:
        queries = q
    return *_means(table), attraction, share, queries, weight


def info_nce_query_backward(
    grad: Tensor, query: Tensor, key: Tensor, attraction: Tensor, share: Tensor, logits: Logits
) -> Tensor:
    query, key = query.contiguous(), key.contiguous()
    return _through_norm(_as_sums(attraction), query, key, share, grad, logits, len(query))


def info_nce_key_backward(
    grad: Tensor, query: Tensor, key: Tensor, share: Tensor, queries: Tensor, weight: Tensor, logits: Logits, group: str
) -> Tensor:
    query, key = query.contiguous(), key.contiguous()
    batch, width = key.shape
    if not queries.numel():
        sums = key.new_zeros((1, batch, padded_width(width)), dtype=torch.float32)
        return _through_norm(sums, key, query, share, grad, logits, batch)
    size, rank = size_and_rank(group)
    k, factor = unit_rows(key, logits, 1)
    return _gradient(
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


def unit_rows(x: Tensor, logits: Logits, segments: int) -> tuple[Tensor, Tensor]:
    """Contiguous x [segments·B, D] -> rows for products [segments·padded, P], factors [segments·B] (or none)."""
    rows, width = x.shape
    batch, padded, wide = rows // segments, padded_rows(rows // segments), padded_width(width)
    z = x.new_empty((segments * padded, wide), dtype=logits.products)
    factor = x.new_empty(rows if logits.normalize else 0, dtype=torch.float32)
    per_program = unit_rows_per_program(wide)
    unit_rows_kernel[(triton.cdiv(len(z), per_program),)](
        x,
        z,
        factor,
        len(z),
        batch,
        padded,
        D=width,
        P=wide,
        NORMALIZE=logits.normalize,
        SMALLEST=SMALLEST_NORM,
        ROWS=per_program,
        num_warps=4,
    )
    return z, factor


def _tile(kernel: str, z: Tensor) -> Tile:
    return tile_for(kernel, z.shape[1], z.dtype, target_of(z.device))


def _options(tile: Tile, z: Tensor) -> dict[str, Any]:
    constants, options = launch_options(tile, z.shape[1], z.dtype, target_of(z.device))
    return {**constants, **options}


def _columns(z: Tensor, views: int, batch: int, group: str) -> tuple[Tensor, int, int]:
    """All ranks' rows in padded layout, the length of a segment, and where this rank's rows begin in it."""
    if not group:
        return z, batch, 0
    size, rank = size_and_rank(group)
    own = z.view(views, -1, z.shape[1])[:, :batch].reshape(views * batch, -1)
    everyone = gather_rows(own, views, group).view(views, size * batch, -1)
    pad = padded_rows(size * batch) - size * batch
    return F.pad(everyone, (0, 0, 0, pad)).view(-1, z.shape[1]), size * batch, rank * batch


def _queue_columns(queue: Tensor, logits: Logits) -> Tensor:
    pad = padded_width(queue.shape[1]) - queue.shape[1]
    return (F.pad(queue, (0, pad)) if pad else queue).to(logits.products).contiguous()


def _as_sums(attraction: Tensor) -> Tensor:
    """[rows, D] -> the [1, rows, P] that `through_norm_kernel` reads."""
    return F.pad(attraction, (0, padded_width(attraction.shape[1]) - attraction.shape[1]))[None]


def _column_weight(lse: Tensor, segments: int, logits: Logits, online: bool) -> Tensor:
    """What `finish_kernel` writes as weight, from the natural lse [segments·B] of all ranks."""
    by_segment = lse.view(segments, -1)
    padded = F.pad(by_segment, (0, padded_rows(by_segment.shape[1]) - by_segment.shape[1]))
    base_two = padded.flatten() * LOG2E - _rescale(logits)
    return base_two if online else torch.exp2(-base_two)


def _rescale(logits: Logits) -> int:
    return HALF_RESCALE if logits.products == torch.float16 else 0


def _triangle(z: Tensor, logits: Logits, views: int, batch: int) -> Tensor:
    """Partial sums [slots, 1, rows]."""
    tile = _tile("triangle", z)
    tiles, per_view = len(z) // tile.owner, len(z) // tile.owner // views
    clear, special = (tiles - 1) // 2 - (views - 1) // 2, (views - 1) // 2
    reduced = []
    for begin in range(0, max(clear, 1), SLOTS):
        end = min(begin + SLOTS, clear)
        splits = max(1, min(2 * processors(z.device) // tiles, end - begin))
        slots = end - begin + splits + (special if begin == 0 else 0)
        partial = z.new_empty((slots, 1, len(z)), dtype=torch.float32)
        triangle_kernel[(tiles, splits)](
            z,
            partial,
            LOG2E / logits.temperature,
            batch,
            per_view,
            tiles,
            begin,
            end,
            triton.cdiv(end - begin, splits),
            VIEWS=views,
            BLOCK=tile.owner,
            EVEN=batch % tile.owner == 0 and per_view * tile.owner == batch,
            **_options(tile, z),
        )
        if clear <= SLOTS:
            return partial
        reduced.append(partial.sum(0))
    return torch.stack(reduced)


def _rectangle(
    rows: Tensor,
    columns: Tensor,
    logits: Logits,
    segments: int,
    batch: int,
    width: int,
    first: int,
    online: bool,
    metrics: bool,
    *,
    attract: bool,
    exclude: bool = True,
) -> tuple[Tensor, Tensor]:
    """Partial sums [splits, statistics, rows] and attractions [splits, rows, P] (empty unless asked for)."""
    tile = _tile("attraction" if attract else "rectangle", rows)
    row_tiles, pieces = len(rows) // tile.owner, rows.shape[1] // tile.piece if attract else 1
    splits = _splits(2 * processors(rows.device), row_tiles * pieces, width // tile.streamed)
    statistics = 1 + (online or metrics) + metrics
    partial = rows.new_empty((splits, statistics, len(rows)), dtype=torch.float32)
    attracted = rows.new_empty((splits, *rows.shape) if attract else (0,), dtype=torch.float32)
    rectangle_kernel[(row_tiles, splits, pieces)](
        rows,
        columns,
        partial,
        attracted,
        LOG2E / logits.temperature,
        first,
        width,
        len(columns) // segments,
        padded_rows(batch),
        SEGMENTS=segments,
        BM=tile.owner,
        BN=tile.streamed,
        EXCLUDE=exclude,
        ONLINE=online,
        METRICS=metrics,
        ATTRACT=attract,
        **_options(tile, rows),
    )
    return partial, attracted


def _finish(
    partial: Tensor,
    attracted: Tensor | None,
    x: Tensor,
    factor: Tensor,
    z: Tensor,
    partner: tuple[Tensor, Tensor, Tensor] | None,
    logits: Logits,
    views: int,
    online: bool,
    metrics: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> table [rows, 2 or 4], share [rows], weight [padded rows], attraction [rows, D] (empty without `attracted`)."""
    rows, width = x.shape
    attract = attracted is not None and attracted.numel() > 0
    table = x.new_empty((rows, 4 if metrics else 2), dtype=torch.float32)
    share = x.new_empty(rows, dtype=torch.float32)
    weight = x.new_empty(len(z), dtype=torch.float32)
    attraction = x.new_empty((rows, width) if attract else (0,), dtype=torch.float32)
    partner = partner or (x, factor, z)
    per_program = max(1, min(32, 4096 // z.shape[1]))
    c = LOG2E / logits.temperature
    finish_kernel[(triton.cdiv(rows, per_program),)](
        partial,
        attracted if attract else partial,
        x,
        factor,
        z,
        *partner,
        table,
        share,
        weight,
        attraction,
        partial.shape[0],
        len(attracted) if attracted is not None and attract else 0,
        partial.shape[2],
        c,
        TIE * c,
        _rescale(logits),
        rows,
        rows // views,
        padded_rows(rows // views),
        VIEWS=views,
        D=width,
        P=z.shape[1],
        NORMALIZE=logits.normalize,
        ONLINE=online,
        METRICS=metrics,
        ATTRACT=attract,
        ROWS=per_program,
        num_warps=4,
    )
    return table, share, weight, attraction


def _gradient(
    rows: Tensor,
    columns: Tensor,
    weight: Tensor,
    x: Tensor,
    factor: Tensor,
    partner: Tensor | None,
    share: Tensor,
    grad: Tensor,
    logits: Logits,
    segments: int,
    width: int,
    first: int,
    online: bool,
) -> Tensor:
    """Gradient of x: of NT-Xent, or of the keys of InfoNCE if `partner` (their queries) is given."""
    full = len(rows) // PADDING >= processors(rows.device)
    tile = _tile("gradient" if full else "gradient-few", rows)
    batch = len(x) // segments
    row_tiles, pieces = len(rows) // tile.owner, rows.shape[1] // tile.piece
    # Few rows leave processors idle: then columns are split as well, and the ends meet in a second kernel.
    enough = 2 * row_tiles * pieces > processors(rows.device)
    splits = 1 if enough else _splits(processors(rows.device), row_tiles * pieces, width // tile.streamed)
    fused = splits == pieces == 1
    partial = rows.new_empty((0,) if fused else (splits, *rows.shape), dtype=torch.float32)
    out = torch.empty_like(x)
    partner_factor = factor
    if partner is None:
        partner = x
    elif logits.normalize:
        partner_factor = unit_rows(partner, logits, 1)[1]
    c = LOG2E / logits.temperature
    scale, rescale = 1.0 / (len(x) * logits.temperature), 2.0 ** -_rescale(logits)
    flags = {"OWN": partner is x, "ONLINE": online, "NORMALIZE": logits.normalize}
    gradient_kernel[(row_tiles, splits, pieces)](
        rows,
        columns,
        weight,
        weight,
        partial,
        x,
        factor,
        partner,
        partner_factor,
        share,
        grad,
        out,
        c,
        scale,
        rescale,
        first,
        width,
        len(columns) // segments,
        padded_rows(batch),
        batch,
        SEGMENTS=segments,
        D=x.shape[1],
        BM=tile.owner,
        BN=tile.streamed,
        FUSED=fused,
        **flags,
        **_options(tile, rows),
    )
    if fused:
        return out
    return _launch_through_norm(
        partial,
        x,
        factor,
        partner,
        partner_factor,
        share,
        weight,
        grad,
        out,
        (c, scale, rescale, first, len(columns) // segments, padded_rows(batch), batch),
        segments,
        flags,
    )


def _through_norm(
    sums: Tensor, x: Tensor, partner: Tensor, share: Tensor, grad: Tensor, logits: Logits, padded: int
) -> Tensor:
    """Gradient of x [B, D] from the sums [1, B, P] over negatives and its positive, row by row in `partner`."""
    factors = [unit_rows(t, logits, 1)[1] for t in (x, partner)]
    scale = 1.0 / (len(x) * logits.temperature)
    flags = {"OWN": False, "ONLINE": False, "NORMALIZE": logits.normalize}
    numbers = (0.0, scale, 1.0, 0, padded, padded, len(x))
    return _launch_through_norm(
        sums, x, factors[0], partner, factors[1], share, share, grad, torch.empty_like(x), numbers, 1, flags
    )


def _launch_through_norm(
    partial: Tensor,
    x: Tensor,
    factor: Tensor,
    partner: Tensor,
    partner_factor: Tensor,
    share: Tensor,
    weight: Tensor,
    grad: Tensor,
    out: Tensor,
    numbers: tuple[float, ...],
    views: int,
    flags: dict[str, bool],
) -> Tensor:
    per_program = max(1, min(32, 4096 // partial.shape[2]))
    through_norm_kernel[(triton.cdiv(len(x), per_program),)](
        partial,
        x,
        factor,
        partner,
        partner_factor,
        share,
        weight,
        grad,
        out,
        *numbers,
        partial.shape[0],
        len(x),
        partial.shape[1],
        VIEWS=views,
        D=x.shape[1],
        P=partial.shape[2],
        ROWS=per_program,
        num_warps=4,
        **flags,
    )
    return out


def _splits(wanted: int, programs: int, tiles: int) -> int:
    """Shares of the columns, so that about `wanted` programs run, each with a few tiles at least."""
    return max(1, min(wanted // programs, tiles // 4))


def _means(table: Tensor) -> tuple[Tensor, Tensor]:
    return table[:, 0].mean(), table[:, 2:].mean(0)
