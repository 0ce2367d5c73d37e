"""SwAV's loss on a GPU: shapes, tiles and grids around the Triton kernels. Nothing here waits for the device."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from ..device import processors, target_of
from ..operand import Operand
from ..tile import Tile, launch_options
from .kernel import code_sums_kernel, finish_kernel, predict_kernel, prototype_kernel
from .kernel_scores import code_cross_entropy_backward_kernel, code_cross_entropy_kernel
from .tiles import SCORE_BLOCK, SCORE_ROWS, SCORE_WARPS, tile_for

LOG2E = math.log2(math.e)


def swapped_prediction(
    z: Tensor,
    prototypes: Tensor,
    codes: Tensor,
    temperature: float,
    assign: list[int],
    products: torch.dtype,
    z_gradient: bool,
    prototype_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> loss, gradients of z and prototypes (empty unless wanted), fp32."""
    z, codes = z.contiguous(), codes.contiguous()
    count, batch, _ = codes.shape
    crops = len(z) // batch
    terms = count * (crops - 1) * batch
    scale, c = 1.0 / (terms * temperature), LOG2E / temperature
    rows, columns = Operand(z[None], products), Operand(prototypes[None], products)
    sums, mass = _code_sums(codes, columns)
    lse, predicted = _predict(rows, columns, c, gather=z_gradient)
    losses = z.new_empty(len(z), dtype=torch.float32)
    by_z = z.new_empty(z.shape if z_gradient else (0,), dtype=torch.float32)
    shifted = torch.empty_like(lse)
    per_program = max(1, 4096 // rows.wide)
    finish_kernel[(triton.cdiv(rows.padded, per_program),)](
        z,
        lse,
        predicted,
        sums,
        mass,
        losses,
        by_z,
        shifted,
        crops,
        batch,
        temperature,
        scale,
        rows.padded,
        ASSIGN=sum(crop << 8 * i for i, crop in enumerate(assign)),
        CODES=count,
        D=z.shape[1],
        P=rows.wide,
        GATHER=z_gradient,
        ROWS=per_program,
        num_warps=4,
    )
    by_prototypes = z.new_empty(0, dtype=torch.float32)
    if prototype_gradient:
        by_prototypes = _prototype_gradient(z, rows, columns, shifted, codes, assign, c).mul_(scale)
    return losses.sum() / terms, by_z, by_prototypes


def _tile(kernel: str, operand: Operand) -> tuple[Tile, dict[str, Any]]:
    target = target_of(operand.rows.device)
    tile = tile_for(kernel, operand.wide, operand.rows.dtype, target)
    constants, options = launch_options(tile, operand.wide, operand.rows.dtype, target)
    return tile, {"BM": tile.owner, "BN": tile.streamed, **constants, **options}


def _code_sums(codes: Tensor, columns: Operand) -> tuple[Tensor, Tensor]:
    """Σ_k q_k w_k [A·B, P] and Σ_k q_k [A·B]."""
    count, batch, width = codes.shape
    tile, options = _tile("codes", columns)
    sums = codes.new_empty((count * batch, columns.wide), dtype=torch.float32)
    mass = codes.new_empty(count * batch, dtype=torch.float32)
    grid = (triton.cdiv(count * batch, tile.owner), columns.wide // tile.piece)
    code_sums_kernel[grid](codes, columns.rows, sums, mass, count * batch, K=width, **options)
    return sums, mass


def _predict(rows: Operand, columns: Operand, c: float, *, gather: bool) -> tuple[Tensor, Tensor]:
    """lse [padded rows] in log 2 and Σ_k p_k w_k [padded rows, P] (empty unless asked for)."""
    tile, options = _tile("predict", rows)
    lse = rows.rows.new_empty(rows.padded, dtype=torch.float32)
    predicted = rows.rows.new_empty((rows.padded, rows.wide) if gather else (0,), dtype=torch.float32)
    grid = (rows.padded // tile.owner, rows.wide // tile.piece if gather else 1)
    predict_kernel[grid](rows.rows, columns.rows, lse, predicted, c, K=columns.real, GATHER=gather, **options)
    return lse, predicted


def _prototype_gradient(
    z: Tensor, rows: Operand, columns: Operand, shifted: Tensor, codes: Tensor, assign: list[int], c: float
) -> Tensor:
    """Σ_r w_r p_rk z_r − Σ_b q_bk Σ_v z_vb [K, D]."""
    count, batch, width = codes.shape
    by_crop = z.float().view(-1, batch, z.shape[1])
    compared = by_crop.sum(0) - torch.stack([by_crop[i] for i in assign])
    others = Operand(compared.view(1, count * batch, -1), rows.rows.dtype)
    tile, options = _tile("prototypes", columns)
    owners, pieces = columns.padded // tile.owner, columns.wide // tile.piece
    row_tiles, code_tiles = rows.padded // tile.streamed, others.padded // tile.streamed
    splits = max(1, min(2 * processors(z.device) // (owners * pieces), row_tiles // 4))
    partial = shifted.new_empty((splits, columns.padded, columns.wide))
    prototype_kernel[(owners, splits, pieces)](
        columns.rows,
        rows.rows,
        shifted,
        codes,
        others.rows,
        partial,
        c,
        row_tiles,
        count * batch,
        code_tiles,
        columns.padded,
        K=width,
        **options,
    )
    return partial.sum(0)[:width, : z.shape[1]].contiguous()


def code_cross_entropy(scores: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    rows, width = scores.shape
    losses, statistics = (scores.new_empty(shape, dtype=torch.float32) for shape in ((rows,), (3, rows)))
    code_cross_entropy_kernel[(triton.cdiv(rows, SCORE_ROWS),)](
        scores.contiguous(),
        target.contiguous(),
        losses,
        statistics,
        rows,
        LOG2E / temperature,
        K=width,
        **score_options(width),
    )
    return losses, statistics


def code_cross_entropy_backward(
    grad: Tensor, scores: Tensor, target: Tensor, statistics: Tensor, temperature: float
) -> Tensor:
    rows, width = scores.shape
    result = torch.empty_like(scores, memory_format=torch.contiguous_format)
    code_cross_entropy_backward_kernel[(triton.cdiv(rows, SCORE_ROWS),)](
        grad.contiguous(),
        scores.contiguous(),
        target.contiguous(),
        statistics,
        result,
        rows,
        LOG2E / temperature,
        temperature,
        K=width,
        **score_options(width),
    )
    return result


def score_options(width: int) -> dict[str, int]:
    """Constants and launch options of the kernels that read scores."""
    block = min(SCORE_BLOCK, max(128, triton.next_power_of_2(width)))
    return {"ROWS": SCORE_ROWS, "BLOCK": block, "num_warps": SCORE_WARPS}
