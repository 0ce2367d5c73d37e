"""Blocks of images against negatives, all pairs of views at once: logits, their sums, what becomes of them.

A block of logits holds, view by view, [images, large crops, negatives]; predictions and their counterparts are slices
of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from ..arithmetic import plain_arithmetic
from ..gather import size_and_rank
from ..nt_xent.blocked import EXCLUDED, LOWEST
from .pairs import Pairs

# Logits of a block, 4 MB in fp32, of which there are three, and negatives of one.
BLOCK, NEGATIVES = 1 << 20, 512
# Images of a block whose products are still fast: if so many fit with all their negatives, one pass is enough.
FAST_IMAGES = 64


def one_pass(pairs: Pairs, count: int) -> bool:
    """Whether a block holds all `count` negatives of its images, so that one pass makes loss and gradient."""
    return count > 0 and pairs.predictions * count * min(pairs.batch, FAST_IMAGES) <= BLOCK


@dataclasses.dataclass
class Sums:
    """Over the negatives of each prediction, [L + S, L, B] each.

    log_sum: log Σ exp(s), −∞ where there is none. difference, own: means of s − s' and of s under exp(s), s' being the
    counterpart's logit; largest: max s. Zero where they were not asked for.
    """

    log_sum: Tensor
    difference: Tensor
    own: Tensor
    largest: Tensor


class Block:
    """Scratch for the logits of `images` × `negatives` over all pairs, and where each pair lies in it."""

    def __init__(self, pairs: Pairs, count: int) -> None:
        self.pairs = pairs
        self.targets = [[j for j in range(pairs.large) if pairs.diagonal or i != j] for i in range(pairs.views)]
        # A row of the gradient is then linear in the exponentials of a single prediction.
        self.one_each = all(len(targets) == 1 for targets in self.targets) and not pairs.through_second
        rows = pairs.predictions
        self.negatives = count if one_pass(pairs, count) else max(1, min(count, NEGATIVES))
        self.images = max(1, min(pairs.batch, BLOCK // (max(rows, 1) * self.negatives)))
        self.scratch = torch.empty(3, rows * self.images * self.negatives)

    def views(self, which: int, images: int, negatives: int) -> tuple[Tensor, list[Tensor]]:
        """One scratch block as [rows, negatives], and as [images, targets, negatives] of each online view."""
        sizes = [images * len(targets) for targets in self.targets]
        flat = self.scratch[which, : sum(sizes) * negatives].view(-1, negatives)
        parts = flat.split(sizes)
        return flat, [p.view(images, len(ts), negatives) for p, ts in zip(parts, self.targets, strict=True)]

    def at(self, parts: list[Tensor], i: int, j: int) -> Tensor:
        """Logits [images, negatives] of the pair (i, j)."""
        return parts[i][:, self.targets[i].index(j)]

    def each(self) -> Iterator[tuple[int, int]]:
        return ((i, j) for i, targets in enumerate(self.targets) for j in targets)

    def columns_of(self, columns: Tensor) -> list[Tensor]:
        """The negatives of each online view's targets [J, N, D]; the same tensor where those are all."""
        return [columns if len(targets) == len(columns) else columns[targets] for targets in self.targets]

    def rows_of(self, values: Tensor) -> Tensor:
        """[L + S, L, images] -> one number for each row of a block."""
        return torch.cat([values[i, targets].T.flatten() for i, targets in enumerate(self.targets)])

    def scatter(self, rows: Tensor, into: Tensor) -> None:
        """The inverse of `rows_of`; pairs without rows are left."""
        images = into.shape[2]
        parts = rows.split([images * len(targets) for targets in self.targets])
        for i, (part, targets) in enumerate(zip(parts, self.targets, strict=True)):
            into[i, targets] = part.view(images, len(targets)).T


class Running:
    """Sums over the negatives seen so far, for each row of a block."""

    def __init__(self, block: Block, images: int, metrics: bool) -> None:
        self.block, self.images, self.metrics = block, images, metrics
        self.pairs, self.known = block.pairs, not block.pairs.online
        count = sum(map(len, block.targets)) * images
        self.total, self.difference, self.own = torch.zeros(3, count).unbind()
        self.top = torch.full((count,), LOWEST)

    def add(self, flat: Tensor, logits: list[Tensor]) -> Tensor:
        """Take in a block of logits; -> their exponentials, relative to `top` unless the maximum is known.

        They are in the second scratch block, and the differences, if there is a divergence, in the third.
        """
        exps = self.block.views(1, self.images, flat.shape[1])[0]
        if self.known:
            if self.metrics:
                torch.maximum(self.top, flat.amax(1), out=self.top)
            torch.exp(flat, out=exps)
        else:
            higher = torch.maximum(self.top, flat.amax(1))
            rescale = (self.top - higher).exp_()
            for running in (self.total, self.difference, self.own):
                running *= rescale
            self.top = higher
            torch.sub(flat, self.top[:, None], out=exps).exp_()
        self.total += exps.sum(1)
        if self.pairs.invariance:
            self.difference += _dot(differences(self.block, logits), exps)
        if self.metrics or (self.pairs.invariance and self.pairs.stop_gradient == "entropy"):
            self.own += _dot(flat, exps)
        return exps

    def finish(self) -> Sums:
        shape = (self.pairs.views, self.pairs.large, self.images)
        sums = Sums(torch.full(shape, -torch.inf), torch.zeros(shape), torch.zeros(shape), torch.full(shape, LOWEST))
        self.block.scatter(self.total.log() if self.known else self.total.log() + self.top, sums.log_sum)
        scale = torch.where(self.total > 0, 1.0 / self.total, 0.0)
        self.block.scatter(self.difference * scale, sums.difference)
        self.block.scatter(self.own * scale, sums.own)
        self.block.scatter(self.top, sums.largest)
        return sums


def fill(
    block: Block,
    o: Tensor,
    columns: list[Tensor],
    rows: slice,
    part: slice,
    negatives: Tensor | None,
    group: str,
) -> tuple[Tensor, list[Tensor]]:
    """Logits of the images `rows` of o [L + S, B, D] against `part` of each view's negatives [J, N, D]."""
    flat, logits = block.views(0, rows.stop - rows.start, part.stop - part.start)
    for i, targets in enumerate(block.targets):
        if targets:
            chosen = columns[i][:, part].flatten(0, 1)
            out = logits[i].flatten(1)
            torch.addmm(out, o[i, rows], chosen.T, beta=0.0, alpha=1.0 / block.pairs.temperature, out=out)
    _exclude(logits, rows, part, negatives, block.pairs, group)
    return flat, logits


def _exclude(
    logits: list[Tensor], rows: slice, part: slice, negatives: Tensor | None, pairs: Pairs, group: str
) -> None:
    """An image is not its own negative."""
    first = size_and_rank(group)[1] * pairs.batch + rows.start
    images = rows.stop - rows.start
    if negatives is None:
        offset = first - part.start
        if -images < offset < part.stop - part.start:
            for view in logits:
                view.diagonal(offset, 0, 2).fill_(EXCLUDED)
        return
    own = [(image - first, column) for column, image in enumerate(negatives[part].tolist())]
    own = [(row, column) for row, column in own if 0 <= row < images]
    if own:
        row, column = torch.tensor(own).unbind(1)
        for view in logits:
            view[row, :, column] = EXCLUDED


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Σ a b of each row."""
    with plain_arithmetic(torch.float32):
        return torch.bmm(a[:, None], b[:, :, None]).view(-1)


def differences(block: Block, logits: list[Tensor]) -> Tensor:
    """Logits less those of the counterpart, into the third scratch block; 0 for a view and itself."""
    flat, parts = block.views(2, logits[0].shape[0], logits[0].shape[2])
    for i, j in block.each():
        out = block.at(parts, i, j)
        if i == j:
            out.zero_()
        else:
            torch.sub(block.at(logits, i, j), block.at(logits, *counterpart(block.pairs, i, j)), out=out)
    return flat


def add_gradient(
    block: Block, logits: list[Tensor], columns: list[Tensor], constant: Tensor, part: slice, total: Tensor
) -> None:
    """total [L + S, b, D] += Σ G column over a block: probabilities in its second scratch, differences in its third.

    Linear in the probabilities: those that were not divided by a row's denominator give G column times that.
    """
    size = (total.shape[1], part.stop - part.start)
    weights = probabilities = block.views(1, *size)[1]
    if block.pairs.invariance:
        weights = block.views(2, *size)[1]
        for i, j in block.each():
            _weights(block, logits, probabilities, weights, i, j, constant)
    for i, targets in enumerate(block.targets):
        if targets:
            total[i].addmm_(weights[i].flatten(1), columns[i][:, part].flatten(0, 1))


def _weights(
    block: Block, logits: list[Tensor], p: list[Tensor], out: list[Tensor], i: int, j: int, constant: Tensor
) -> None:
    """G_ij of a block: p (w + c + α_log s − α_expectation s') + α_second Σ (p − p') over what has p as counterpart.

    α_log is 0 or α_expectation.
    """
    pairs = block.pairs
    weight, mine = block.at(out, i, j), block.at(p, i, j)
    reverse = _reverse(pairs, i, j)
    base = 1.0 if i != j or pairs.self_pairs else 0.0
    base += pairs.through_second * len(reverse)
    if i != j and pairs.invariance:
        level = constant[i, j, :, None] + base
        if pairs.through_log:
            torch.add(level, weight, alpha=pairs.through_log, out=weight)
        else:
            other = block.at(logits, *counterpart(pairs, i, j))
            torch.sub(level, other, alpha=pairs.through_expectation, out=weight)
        weight.mul_(mine)
    else:
        torch.mul(mine, base, out=weight)
    if pairs.through_second:
        for other_pair in reverse:
            weight.sub_(block.at(p, *other_pair), alpha=pairs.through_second)


def counterpart(pairs: Pairs, i: int, j: int) -> tuple[int, int]:
    """The pair whose prediction p_ij should equal."""
    return (j, i) if i < pairs.large else (j, j)


def _reverse(pairs: Pairs, i: int, j: int) -> list[tuple[int, int]]:
    """The pairs whose counterpart is (i, j)."""
    if not pairs.invariance or i >= pairs.large:
        return []
    return [(j, i)] if i != j else [(s, j) for s in range(pairs.large, pairs.views)]
