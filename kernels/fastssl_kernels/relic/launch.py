"""The operator bodies on a GPU: shapes, tiles and grids around the Triton kernels. Nothing here waits for the device.

Forward: normalise online rows and the rows of negatives, sums over negatives, statistics, combination; backward: sums
over negatives, positives and normalisation.
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
from ..nt_xent.reference import TIE
from ..rows import SMALLEST_NORM
from ..rows_kernel import unit_rows_kernel, unit_rows_per_program
from ..tile import Tile, launch_options, padded_rows, padded_width
from .kernel import pair_statistics_kernel, pair_sums_kernel
from .kernel_combine import combine_kernel
from .kernel_gradient import pair_gradient_kernel, view_gradient_kernel
from .negatives import sampled_rows
from .pairs import Pairs, padded_columns
from .tiles import tile_for

LOG2E = math.log2(math.e)
# fp16 weights are computed 2^4 times too large, so that probabilities down to 4e-6 stay normal; the largest, about
# 1 + 2α/τ, stay far below 2^11.
HALF_RESCALE = 16.0
# Images of a program of four warps: four numbers a thread, loads of 128 bits.
COMBINED = 512


def relic_forward(
    online: Tensor,
    target: Tensor,
    negatives: Tensor | None,
    pairs: Pairs,
    metrics: bool,
    gradient: bool,
    group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> loss, metrics [4] or [0], columns [L·N, P] in padded layout, table [3, (L + S)·L, B]; see `operators`.

    A gradient is made in a pass of its own, wanted or not.
    """
    online, target = online.contiguous(), target.contiguous()
    z, factor = _unit_rows(online, pairs.views, padded_rows(pairs.batch), pairs.products)
    columns = _columns(target, negatives, pairs, group)
    partial = _sums(z, columns, negatives, pairs, metrics, group)
    statistics = _statistics(partial, z, online, factor, target, pairs, metrics)
    table, terms = _combine(statistics, pairs, metrics)
    means = gather_rows(terms.sum(1).T / pairs.count, 1, group).mean(0)
    loss = means[0] + pairs.alpha * means[1] if pairs.invariance else means[0].clone()
    return loss, means if metrics else means.new_empty(0), columns, table


def relic_backward(
    grad: Tensor,
    online: Tensor,
    target: Tensor,
    negatives: Tensor | None,
    columns: Tensor,
    table: Tensor,
    pairs: Pairs,
    group: str,
) -> Tensor:
    """Gradient of `online` [(L + S)·B, D], scaled so that the average over ranks is the exact one."""
    online, target = online.contiguous(), target.contiguous()
    z, factor = _unit_rows(online, pairs.views, padded_rows(pairs.batch), pairs.products)
    rescale = HALF_RESCALE if pairs.products == torch.float16 else 1.0
    partial = _weighted_sums(z, columns, table, negatives, pairs, rescale, group)
    out = torch.empty_like(online)
    per_program = rows_per_program(z.shape[1])
    view_gradient_kernel[(triton.cdiv(pairs.batch, per_program), pairs.views)](
        partial,
        online,
        factor,
        target,
        table[2],
        grad,
        out,
        1.0 / (pairs.count * pairs.batch * pairs.temperature),
        1.0 / rescale,
        len(partial),
        pairs.batch,
        padded_rows(pairs.batch),
        LARGE=pairs.large,
        VIEWS=pairs.views,
        D=online.shape[1],
        P=z.shape[1],
        SMALLEST=SMALLEST_NORM,
        ROWS=per_program,
        num_warps=4,
    )
    return out


def _unit_rows(x: Tensor, segments: int, padded: int, products: torch.dtype) -> tuple[Tensor, Tensor]:
    """Contiguous x [segments·B, D] -> rows for products [segments·padded, P], factors [segments·B]."""
    wide = padded_width(x.shape[1])
    z = x.new_empty((segments * padded, wide), dtype=products)
    factor = x.new_empty(len(x), dtype=torch.float32)
    per_program = unit_rows_per_program(wide)
    unit_rows_kernel[(triton.cdiv(len(z), per_program),)](
        x,
        z,
        factor,
        len(z),
        len(x) // segments,
        padded,
        D=x.shape[1],
        P=wide,
        NORMALIZE=True,
        SMALLEST=SMALLEST_NORM,
        ROWS=per_program,
        num_warps=4,
    )
    return z, factor


def _columns(target: Tensor, negatives: Tensor | None, pairs: Pairs, group: str) -> Tensor:
    """Unit rows of the images that may be negatives, of all ranks, [L·N, P] with N padded."""
    large = pairs.large
    if negatives is not None:
        rows = sampled_rows(target, large, negatives, group)
        return _unit_rows(rows, large, padded_columns(len(negatives)), pairs.products)[0]
    if not group:
        return _unit_rows(target, large, padded_columns(pairs.batch), pairs.products)[0]
    images = size_and_rank(group)[0] * pairs.batch
    own = _unit_rows(target, large, pairs.batch, pairs.products)[0]
    everyone = gather_rows(own, large, group).view(large, images, -1)
    return F.pad(everyone, (0, 0, 0, padded_columns(images) - images)).flatten(0, 1)


def _sums(z: Tensor, columns: Tensor, negatives: Tensor | None, pairs: Pairs, metrics: bool, group: str) -> Tensor:
    """Partial sums [splits, 4, pairs, padded rows]; what was not asked for stays unwritten."""
    tile = _tile("sums", z, columns, pairs)
    geometry = _geometry(z, columns, negatives, pairs, group)
    grid_pairs, row_tiles = pairs.views * pairs.large, padded_rows(pairs.batch) // tile.owner
    programs = row_tiles * (grid_pairs // 2 if pairs.invariance else pairs.count)
    splits = _splits(2 * processors(z.device), programs, geometry["width"] // tile.streamed, negatives)
    partial = z.new_empty((splits, 4, grid_pairs, padded_rows(pairs.batch)), dtype=torch.float32)
    pair_sums_kernel[(row_tiles, grid_pairs, splits)](
        z,
        columns,
        columns if negatives is None else negatives.contiguous(),
        partial,
        LOG2E / pairs.temperature,
        *geometry.values(),
        EXPECTATION=_expectation(pairs, metrics),
        MAXIMUM=metrics,
        **_flags(tile, z, negatives, pairs),
    )
    return partial


def _statistics(
    partial: Tensor, z: Tensor, x: Tensor, factor: Tensor, target: Tensor, pairs: Pairs, metrics: bool
) -> Tensor:
    """[6 or 7, pairs, B]; see the kernel."""
    c = LOG2E / pairs.temperature
    statistics = z.new_empty((7 if metrics else 6, pairs.views * pairs.large, pairs.batch), dtype=torch.float32)
    per_program = rows_per_program(z.shape[1])
    pair_statistics_kernel[(triton.cdiv(pairs.batch, per_program),)](
        partial,
        z,
        x,
        factor,
        target,
        statistics,
        c,
        TIE * c,
        len(partial),
        pairs.batch,
        padded_rows(pairs.batch),
        LARGE=pairs.large,
        VIEWS=pairs.views,
        D=x.shape[1],
        P=z.shape[1],
        SMALLEST=SMALLEST_NORM,
        DIAGONAL=pairs.diagonal,
        INVARIANCE=pairs.invariance,
        EXPECTATION=_expectation(pairs, metrics),
        METRICS=metrics,
        ONLINE=pairs.online,
        ROWS=per_program,
        num_warps=4,
    )
    return statistics


def _combine(statistics: Tensor, pairs: Pairs, metrics: bool) -> tuple[Tensor, Tensor]:
    """-> table [3, pairs, B], terms [2 or 4, pairs, B]."""
    table = statistics.new_empty((3, *statistics.shape[1:]))
    terms = statistics.new_empty((4 if metrics else 2, *statistics.shape[1:]))
    combine_kernel[(triton.cdiv(pairs.batch, COMBINED), pairs.views * pairs.large)](
        statistics,
        table,
        terms,
        pairs.batch,
        pairs.through_log,
        pairs.through_expectation,
        pairs.through_second,
        LARGE=pairs.large,
        VIEWS=pairs.views,
        SELF=pairs.self_pairs,
        INVARIANCE=pairs.invariance,
        METRICS=metrics,
        ROWS=COMBINED,
        num_warps=4,
    )
    return table, terms


def _weighted_sums(
    z: Tensor, columns: Tensor, table: Tensor, negatives: Tensor | None, pairs: Pairs, rescale: float, group: str
) -> Tensor:
    """Partial gradients [splits, (L + S)·padded rows, P] by the negatives."""
    tile = _tile("gradient", z, columns, pairs)
    geometry = _geometry(z, columns, negatives, pairs, group)
    row_tiles, pieces = padded_rows(pairs.batch) // tile.owner, z.shape[1] // tile.piece
    programs = row_tiles * pairs.views * pieces
    splits = _splits(processors(z.device), programs, geometry["width"] // tile.streamed, negatives)
    partial = z.new_empty((splits, *z.shape), dtype=torch.float32)
    pair_gradient_kernel[(row_tiles, pairs.views * pieces, splits)](
        z,
        columns,
        columns if negatives is None else negatives.contiguous(),
        table,
        partial,
        LOG2E / pairs.temperature,
        *geometry.values(),
        pairs.batch,
        rescale,
        pairs.through_log,
        pairs.through_expectation,
        pairs.through_second,
        SECOND=pairs.through_second > 0,
        **_flags(tile, z, negatives, pairs),
    )
    return partial


def _geometry(z: Tensor, columns: Tensor, negatives: Tensor | None, pairs: Pairs, group: str) -> dict[str, int]:
    size, rank = size_and_rank(group)
    return {
        "first": rank * pairs.batch,
        "width": size * pairs.batch if negatives is None else len(negatives),
        "rows_padded": len(z) // pairs.views,
        "columns_padded": len(columns) // pairs.large,
    }


def _flags(tile: Tile, z: Tensor, negatives: Tensor | None, pairs: Pairs) -> dict[str, Any]:
    constants, options = launch_options(tile, z.shape[1], z.dtype, target_of(z.device))
    return {
        "LARGE": pairs.large,
        "SMALL": pairs.small,
        "BM": tile.owner,
        "BN": tile.streamed,
        "SAMPLED": negatives is not None,
        "SELF": pairs.self_pairs,
        "INVARIANCE": pairs.invariance,
        "ONLINE": pairs.online,
        **constants,
        **options,
    }


def _tile(kernel: str, z: Tensor, columns: Tensor, pairs: Pairs) -> Tile:
    return tile_for(kernel, z.shape[1], z.dtype, target_of(z.device), len(columns) // pairs.large)


def _expectation(pairs: Pairs, metrics: bool) -> bool:
    """Whether the mean logit of every prediction is needed."""
    return metrics or (pairs.invariance and pairs.stop_gradient == "entropy")


def _splits(wanted: int, programs: int, tiles: int, negatives: Tensor | None) -> int:
    """Shares of the columns, so that about `wanted` programs run; sampled columns are few and stay together."""
    return 1 if negatives is not None else max(1, min(wanted // programs, tiles // 4))


def rows_per_program(width: int) -> int:
    """Rows in fp32 that four warps hold three times over."""
    return max(1, min(16, 2048 // width))
