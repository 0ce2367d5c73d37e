"""The CPU path: blocks of logits that stay in the cache, never a whole matrix.

l_ij = s_ij / τ is a logit, `lse_i` the logarithm of row i's whole denominator, exp(l_ij − lse_i) a softmax weight.
Where the maximum is known, exp(l) itself stays within e^±44 and is summed as it is.

A logit is *excluded* when it belongs to the row itself or to one of its positives. Positives are added by the caller
in fp32: the gradient of aligned views is a small difference, which products of rounded operands would drown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arithmetic import add_product, plain_arithmetic, weight_dtype
from .logits import Logits

# Rows and columns of a block: two fp32 blocks are 4.7 MB. Best of 256 to 2048 on two cores with 2 MB of cache each.
BLOCK = 768
# exp(EXCLUDED − LOWEST) = 0, and 0 · EXCLUDED = 0 where −∞ would give NaN.
EXCLUDED, LOWEST = -1e30, -1e29


@dataclass
class Sums:
    """Per row and over the logits that are not excluded, fp32.

    log_sum [N]: log Σ exp(l), −∞ where nothing is left.
    largest [N], weighted [N]: max l and Σ exp(l − log_sum)·l; None unless metrics were asked for.
    attraction [N, D]: Σ exp(l − log_sum)·column; None unless asked for.
    """

    log_sum: Tensor
    largest: Tensor | None = None
    weighted: Tensor | None = None
    attraction: Tensor | None = None

    def __add__(self, other: Sums) -> Sums:
        """Over the logits of both, of which `other` must have some in every row and alone may have an attraction."""
        log_sum = torch.logaddexp(self.log_sum, other.log_sum)
        mine, theirs = (self.log_sum - log_sum).exp_(), (other.log_sum - log_sum).exp_()
        sums = Sums(log_sum, attraction=None if other.attraction is None else other.attraction * theirs[:, None])
        if self.largest is not None and other.largest is not None:
            sums.largest = torch.maximum(self.largest, other.largest)
        if self.weighted is not None and other.weighted is not None:
            sums.weighted = self.weighted * mine + other.weighted * theirs
        return sums


def triangle_sums(z: Tensor, batch: int, logits: Logits, metrics: bool) -> Sums:
    """`Sums` of every row of `z` [V·B, D] against all rows; half the products, as block (I, J) also serves (J, I)."""
    running = _Running(len(z), logits, metrics)
    with plain_arithmetic(logits.products):
        for rows, columns in _upper_blocks(len(z)):
            block = running.tile.fill(z[rows], z[columns])
            _exclude(block, _square_offsets(rows, columns, len(z), batch))
            running.add(block, (rows,) if rows == columns else (rows, columns))
    return running.finish()


def triangle_gradient(z: Tensor, batch: int, lse: Tensor, logits: Logits) -> Tensor:
    """Σ_j W_ij z_j [V·B, D] with W_ij = exp(l_ij − lse_i) + exp(l_ij − lse_j), excluded j left out."""
    tile, gradient, factor = _Tile(logits), torch.zeros_like(z), lse.neg().exp()
    source = z.to(tile.weight_dtype)
    with plain_arithmetic(logits.products):
        for rows, columns in _upper_blocks(len(z)):
            block = tile.fill(z[rows], z[columns])
            _exclude(block, _square_offsets(rows, columns, len(z), batch))
            weight = tile.weights(block, (lse[rows], factor[rows]), (lse[columns], factor[columns]))
            weight = tile.operand(weight)
            add_product(gradient[rows], weight, source[columns])
            if rows != columns:
                add_product(gradient[columns], weight.T, source[rows])
    return gradient


def rectangle_sums(
    rows: Tensor, columns: Tensor, logits: Logits, *, metrics: bool, exclude: Diagonals | None, attraction: bool
) -> Sums:
    """`Sums` of `rows` [N, D] fp32 against `columns` [M, D] of any dtype."""
    running = _Running(len(rows), logits, metrics, width=rows.shape[1] if attraction else 0)
    with plain_arithmetic(logits.products):
        for r, c in _rectangle(len(rows), len(columns), exclude):
            part = columns[c].float()
            block = running.tile.fill(rows[r], part)
            if exclude:
                _exclude(block, exclude.offsets(r, c))
            running.add(block, (r,), part)
    return running.finish()


def rectangle_gradient(
    rows: Tensor,
    columns: Tensor,
    logits: Logits,
    *,
    exclude: Diagonals | None,
    lse_rows: Tensor | None = None,
    lse_columns: Tensor | None = None,
) -> Tensor:
    """Σ_j W_ij column_j [N, D]; W_ij = exp(l_ij − lse_rows_i) + exp(l_ij − lse_columns_j), a missing lse no term."""
    tile, gradient = _Tile(logits), torch.zeros_like(rows)
    sides = [None if lse is None else (lse, lse.neg().exp()) for lse in (lse_rows, lse_columns)]
    with plain_arithmetic(logits.products):
        for r, c in _rectangle(len(rows), len(columns), exclude):
            part = columns[c].float()
            block = tile.fill(rows[r], part)
            if exclude:
                _exclude(block, exclude.offsets(r, c))
            own, other = (side and (side[0][part], side[1][part]) for side, part in zip(sides, (r, c), strict=True))
            weight = tile.operand(tile.weights(block, own, other))
            add_product(gradient[r], weight, part.to(weight.dtype))
    return gradient


@dataclass(frozen=True)
class Diagonals:
    """Where the excluded logits of a rectangle lie.

    Rows are `views` segments of `batch` images, columns `views` segments of `width`; image b is column `first + b` of
    every segment.
    """

    views: int
    batch: int
    width: int
    first: int

    def offsets(self, rows: slice, columns: slice) -> list[int]:
        """Diagonals (column − row inside the block) to exclude; `rows` lie within one segment."""
        image = rows.start % self.batch
        return [v * self.width + self.first + image - columns.start for v in range(self.views)]


def _square_offsets(rows: slice, columns: slice, length: int, batch: int) -> range:
    start = rows.start - columns.start
    return range(start - length + batch, start + length, batch)


def _exclude(block: Tensor, offsets: list[int] | range) -> None:
    for offset in offsets:
        if -block.shape[0] < offset < block.shape[1]:
            block.diagonal(offset).fill_(EXCLUDED)


def _slices(start: int, stop: int) -> list[slice]:
    return [slice(i, min(i + BLOCK, stop)) for i in range(start, stop, BLOCK)]


def _upper_blocks(length: int) -> Iterator[tuple[slice, slice]]:
    slices = _slices(0, length)
    return ((rows, columns) for i, rows in enumerate(slices) for columns in slices[i:])


def _rectangle(rows: int, columns: int, exclude: Diagonals | None) -> Iterator[tuple[slice, slice]]:
    segment = exclude.batch if exclude else rows
    starts = range(0, rows, segment) if rows else ()
    return ((r, c) for s in starts for r in _slices(s, s + segment) for c in _slices(0, columns))


class _Tile:
    """Two scratch blocks, one for logits and one for what becomes of them."""

    def __init__(self, logits: Logits) -> None:
        self.logits = logits
        self.scratch = torch.empty(2, BLOCK * BLOCK)
        self.weight_dtype = weight_dtype(logits.products)
        self.narrow = torch.empty(BLOCK * BLOCK if self.weight_dtype != torch.float32 else 0, dtype=self.weight_dtype)

    def second(self, block: Tensor) -> Tensor:
        return self.scratch[1, : block.numel()].view(block.shape)

    def operand(self, weight: Tensor) -> Tensor:
        """The weights in the dtype in which rows are summed by them."""
        if self.weight_dtype == weight.dtype:
            return weight
        return self.narrow[: weight.numel()].view(weight.shape).copy_(weight)

    def fill(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The block of logits; 1/τ rides along in the product."""
        block = self.scratch[0, : len(rows) * len(columns)].view(len(rows), len(columns))
        return torch.addmm(block, rows, columns.T, beta=0.0, alpha=1.0 / self.logits.temperature, out=block)

    def weights(self, block: Tensor, own: _Side | None, other: _Side | None) -> Tensor:
        """exp(l − lse_own) + exp(l − lse_other) from (lse, exp(−lse)) of each side; overwrites `block`."""
        second = self.second(block)
        if not self.logits.known_maximum:
            terms = [block - lse for lse in (own and own[0][:, None], other and other[0]) if lse is not None]
            return torch.stack(terms).exp_().sum(0) if len(terms) > 1 else terms[0].exp_()
        if own and other:
            torch.add(own[1][:, None], other[1], out=second)
            return block.exp_().mul_(second)
        factor = own[1][:, None] if own else other[1] if other else 0.0
        return block.exp_().mul_(factor)


_Side = tuple[Tensor, Tensor]


class _Running:
    """Sums over the blocks seen so far; relative to the known maximum, or to each row's largest logit until now."""

    def __init__(self, length: int, logits: Logits, metrics: bool, width: int = 0) -> None:
        self.tile = _Tile(logits)
        self.known = logits.known_maximum
        self.sum = torch.zeros(length)
        self.top = torch.full((length,), LOWEST)
        self.weighted = torch.zeros(length) if metrics else None
        self.attraction = torch.zeros(length, width) if width else None

    def add(self, block: Tensor, sides: tuple[slice, ...], columns: Tensor | None = None) -> None:
        """Take in a block of logits, for its rows and, if a second side is given, for its columns; overwrites it.

        columns: what the block's columns stand for, if their attraction is summed.
        """
        if self.known:
            self._add_known(block, sides, columns)
            return
        for i, side in enumerate(sides):
            exps = self._move_maximum(side, block, dim=1 - i)
            self.sum[side] += exps.sum(1 - i)
            if self.weighted is not None:
                self.weighted[side] += (exps * block).sum(1 - i)
            if self.attraction is not None and columns is not None:
                self._attract(side, exps, columns)

    def _add_known(self, block: Tensor, sides: tuple[slice, ...], columns: Tensor | None) -> None:
        exps = torch.exp(block, out=block if self.weighted is None else self.tile.second(block))
        if self.weighted is not None:
            for i, side in enumerate(sides):
                torch.maximum(self.top[side], block.amax(1 - i), out=self.top[side])
            block.mul_(exps)
            for i, side in enumerate(sides):
                self.weighted[side] += block.sum(1 - i)
        for i, side in enumerate(sides):
            self.sum[side] += exps.sum(1 - i)
        if self.attraction is not None and columns is not None:
            self._attract(sides[0], exps, columns)

    def _attract(self, side: slice, exps: Tensor, columns: Tensor) -> None:
        assert self.attraction is not None
        weight = self.tile.operand(exps)
        add_product(self.attraction[side], weight, columns.to(weight.dtype))

    def _move_maximum(self, rows: slice, block: Tensor, dim: int) -> Tensor:
        top = torch.maximum(self.top[rows], block.amax(dim))
        rescale = (self.top[rows] - top).exp_()
        self.top[rows] = top
        self.sum[rows] *= rescale
        if self.weighted is not None:
            self.weighted[rows] *= rescale
        if self.attraction is not None:
            self.attraction[rows] *= rescale[:, None]
        return torch.sub(block, top.unsqueeze(dim), out=self.tile.second(block)).exp_()

    def finish(self) -> Sums:
        log_sum = self.sum.log() if self.known else self.sum.log() + self.top
        if self.weighted is None and self.attraction is None:
            return Sums(log_sum)
        scale = torch.where(self.sum > 0, 1.0 / self.sum, 0.0)
        return Sums(
            log_sum,
            None if self.weighted is None else self.top,
            None if self.weighted is None else self.weighted * scale,
            None if self.attraction is None else self.attraction.mul_(scale[:, None]),
        )
