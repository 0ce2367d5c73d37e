"""Sinkhorn on a GPU: shapes, tiles and grids around the Triton kernels. Nothing here waits for the device."""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from ..device import processors, target_of
from ..gather import all_reduce
from ..operand import Operand
from ..tile import launch_options
from .cpu import EXCLUDED, rows_of, stabilised
from .kernel import first_kernel, iterate_kernel, reduce_kernel
from .kernel_features import log_sum_kernel, resolve_kernel, write_kernel
from .tiles import REDUCE_BLOCK, REDUCE_SLOTS, RESOLVE_BLOCK, WIDEST, Passes, passes_for, product_tile

LOG2E = math.log2(math.e)


def sinkhorn(scores: Tensor, queue: Tensor | None, epsilon: float, iterations: int, group: str) -> Tensor:
    width = scores.shape[2]
    if width > WIDEST:
        codes = scores.new_empty(scores.shape, dtype=torch.float32)
        stabilised(rows_of(scores, queue, codes, None), epsilon, iterations, group)
        return codes
    parts = [part.contiguous() for part in (scores, queue) if part is not None]
    codes = scores.new_empty(scores.shape, dtype=torch.float32)
    passes, c = passes_for(width), LOG2E / epsilon
    total = sum(part.shape[1] for part in parts)
    base, mass = _first(parts, passes, c, group)
    scale = 1.0
    for _ in range(iterations - 1):
        base, mass = _iterate(parts, base, mass, passes, c, scale, group)
        scale = 1.0 if group else width / total
    _iterate_kernel(parts[0], base, mass, base, base, codes, passes, c, scale, slot=0, write=True)
    return codes


def _first(parts: list[Tensor], passes: Passes, c: float, group: str) -> tuple[Tensor, Tensor]:
    """Potentials [problems, K] (base, mass) that give every prototype the same share of 2^x."""
    problems, _, width = parts[0].shape
    blocks = triton.cdiv(width, passes.first_block)
    plans = [_shares(part, passes.first_rows, blocks, 4) for part in parts]
    partial = parts[0].new_empty((sum(splits for _, splits in plans), 2, problems, width), dtype=torch.float32)
    slot = 0
    for part, (share, splits) in zip(parts, plans, strict=True):
        first_kernel[(splits, blocks, problems)](
            part,
            partial,
            part.shape[1],
            share,
            slot,
            problems,
            c,
            K=width,
            ROWS=passes.first_rows,
            BLOCK=passes.first_block,
            num_warps=passes.first_warps,
            enable_fp_fusion=True,
        )
        slot += splits
    return _reduce(partial, None, width, width, group)


def _iterate(
    parts: list[Tensor], base: Tensor, mass: Tensor, passes: Passes, c: float, scale: float, group: str
) -> tuple[Tensor, Tensor]:
    """Both halves of an iteration -> the potentials (base, mass) of the next."""
    plans = [_shares(part, passes.rows, 1, 2) for part in parts]
    partial = base.new_empty((sum(splits for _, splits in plans), *base.shape))
    moved, slot = torch.empty_like(base), 0
    for part, (_, splits) in zip(parts, plans, strict=True):
        _iterate_kernel(part, base, mass, moved, partial, base, passes, c, scale, slot=slot, write=False)
        slot += splits
    return _reduce(partial, moved, base.shape[1], base.shape[1], group)


def _iterate_kernel(
    part: Tensor,
    base: Tensor,
    mass: Tensor,
    moved: Tensor,
    partial: Tensor,
    codes: Tensor,
    passes: Passes,
    c: float,
    scale: float,
    *,
    slot: int,
    write: bool,
) -> None:
    problems, rows, width = part.shape
    share, splits = _shares(part, passes.rows, 1, 2)
    iterate_kernel[(splits, problems)](
        part,
        base,
        mass,
        moved,
        partial,
        codes,
        rows,
        share,
        slot,
        problems,
        c,
        scale,
        K=width,
        ROWS=passes.rows,
        BLOCK=passes.chunk,
        CHUNKS=passes.chunks,
        WRITE=write,
        num_warps=passes.warps,
        enable_fp_fusion=True,
    )


def _shares(part: Tensor, rows: int, blocks: int, programs: int) -> tuple[int, int]:
    """Rows a program takes, a multiple of `rows`, and programs a problem and block: about `programs` a processor."""
    problems, length, _ = part.shape
    wanted = max(1, programs * processors(part.device) // (problems * blocks))
    share = triton.cdiv(triton.cdiv(length, wanted), rows) * rows
    return share, triton.cdiv(length, share)


def _reduce(partial: Tensor, base: Tensor | None, padded: int, real: int, group: str) -> tuple[Tensor, Tensor]:
    """Potentials (base, mass) [problems, padded] from the slots of all launches and ranks; first pass if no base.

    With a group, later masses are scaled to a mean of 1, which is what `scale` does for one process.

    The first pass sums relative to each rank's largest term, so the ranks agree on the largest of all before they add.
    """
    first = base is None
    shape = partial.shape[-2:]
    mass = partial.new_empty(shape)
    own = partial.new_empty(shape) if base is None else base
    reduce_kernel[(triton.cdiv(mass.numel(), REDUCE_BLOCK),)](
        partial,
        own,
        mass,
        len(partial),
        padded,
        real,
        LENGTH=mass.numel(),
        FIRST=first,
        SLOTS=REDUCE_SLOTS,
        BLOCK=REDUCE_BLOCK,
        num_warps=4,
    )
    if group and first:
        common = all_reduce(own.clone(), "min", group)
        mass.mul_((common - own).exp2_())
        own = common
    all_reduce(mass, "sum", group)
    if group and not first:  # ranks may hold different numbers of rows, whose sum over all is that of the masses
        mass.mul_(real / mass.sum(1, keepdim=True))
    return own, mass


def sinkhorn_from_features(
    z: Tensor,
    prototypes: Tensor,
    queue: Tensor | None,
    epsilon: float,
    iterations: int,
    products: torch.dtype,
    group: str,
) -> Tensor:
    (problems, batch, _), width = z.shape, prototypes.shape[1]
    c = LOG2E / epsilon
    owners = Operand(prototypes, products)
    parts = [Operand(part, products) for part in (z, queue) if part is not None]
    total = sum(part.real for part in parts)
    rows = [_no_potential(part, problems) for part in parts]
    potential = _no_potential(owners, problems)
    for step in range(iterations):
        first, last = step == 0, step == iterations - 1
        scale = 1.0 if first or group else width / total
        potential = _half(owners, potential, list(zip(parts, rows, strict=True)), c, scale, first, group)
        for i, part in enumerate(parts[:1] if last else parts):
            rows[i] = _half(part, rows[i], [(owners, potential)], c, 1.0, first, "")
    tile, z_rows = product_tile(owners.wide, products, target_of(z.device)), parts[0]
    codes = z.new_empty((problems, batch, width), dtype=torch.float32)
    constants, options = launch_options(tile, owners.wide, products, target_of(z.device))
    write_kernel[(z_rows.padded // tile.owner, owners.padded // tile.streamed, problems)](
        z_rows.rows,
        owners.rows,
        rows[0],
        potential,
        codes,
        c,
        batch,
        z_rows.padded,
        owners.padded,
        owners.stride,
        K=width,
        BM=tile.owner,
        BN=tile.streamed,
        **constants,
        **options,
    )
    return codes


def _no_potential(rows: Operand, problems: int) -> Tensor:
    """Potentials [problems, padded] of 0, padding excluded."""
    potential = rows.rows.new_zeros((problems, rows.padded), dtype=torch.float32)
    potential[:, rows.real :] = EXCLUDED
    return potential


def _half(
    owner: Operand,
    own: Tensor,
    others: list[tuple[Operand, Tensor]],
    c: float,
    scale: float,
    first: bool,
    group: str,
) -> Tensor:
    """Half an iteration: the potentials of `owner` that make `scale` times the sums over all `others` 1."""
    problems, target = len(own), target_of(owner.rows.device)
    tile = product_tile(owner.wide, owner.rows.dtype, target)
    row_tiles = owner.padded // tile.owner
    wanted = max(1, 2 * processors(owner.rows.device) // (row_tiles * problems))
    splits = [max(1, min(wanted, other.padded // tile.streamed // 4)) for other, _ in others]
    partial = own.new_empty((sum(splits), *((2,) if first else ()), problems, owner.padded))
    slot = 0
    constants, options = launch_options(tile, owner.wide, owner.rows.dtype, target)
    for (other, potential), count in zip(others, splits, strict=True):
        log_sum_kernel[(row_tiles, count, problems)](
            owner.rows,
            other.rows,
            own,
            potential,
            partial,
            c,
            slot,
            problems,
            owner.padded,
            other.padded,
            owner.stride,
            other.stride,
            BM=tile.owner,
            BN=tile.streamed,
            ONLINE=first,
            **constants,
            **options,
        )
        slot += count
    base, mass = _reduce(partial, None if first else own, owner.padded, owner.real, group)
    potential = torch.empty_like(own)
    resolve_kernel[(triton.cdiv(own.numel(), RESOLVE_BLOCK),)](
        base, mass, potential, scale, own.numel(), BLOCK=RESOLVE_BLOCK, num_warps=4
    )
    return potential
