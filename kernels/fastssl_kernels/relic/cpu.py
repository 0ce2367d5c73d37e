"""The operator bodies on the CPU: blocks of images against blocks of negatives, all pairs of views at once.

A block of logits holds, view by view, [images, large crops, negatives]; predictions and their counterparts are slices
of it. Positives join in fp32 at the end: the gradient of aligned views is a small difference, which products of rounded
operands would drown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arithmetic import plain_arithmetic
from ..gather import gather_rows, size_and_rank
from ..nt_xent.blocked import EXCLUDED, LOWEST
from ..nt_xent.reference import TIE
from ..rows import unit_rows
from .negatives import sampled_rows
from .pairs import Pairs

# Logits of a block, 2 MB in fp32, and negatives of one; three such blocks stay in the cache of two cores.
BLOCK, NEGATIVES = 1 << 19, 512
# Images whose rows are put side by side for their small products.
IMAGES = 128


def relic_forward(
    online: Tensor, target: Tensor, negatives: Tensor | None, pairs: Pairs, metrics: bool, group: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> loss, metrics [4] or [0], columns [L·N, D], table [3, (L + S)·L, B]; see `operators`."""
    (o, _), (t, _) = _views(online, pairs.views), _views(target, pairs.large)
    columns = _columns(target, t, negatives, pairs, group)
    sums = _sums(o, columns, negatives, pairs, metrics, group)
    positive = _positives(o, t) / pairs.temperature
    rounded = None
    if metrics:
        rounded = positive
        if pairs.products == torch.bfloat16:
            rounded = _positives(o.bfloat16().float(), t.bfloat16().float()) / pairs.temperature
    table, per_image = _finish(sums, positive, rounded, pairs)
    means = gather_rows(per_image, 1, group).mean(0)
    loss = means[0] + pairs.alpha * means[1] if pairs.invariance else means[0].clone()
    return loss, means.clone() if metrics else means.new_empty(0), columns.flatten(0, 1), table


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
    (o, factor), (t, _) = _views(online, pairs.views), _views(target, pairs.large)
    columns = columns.view(pairs.large, len(columns) // pairs.large, columns.shape[1])
    lse, constant, coefficient = table.view(3, pairs.views, pairs.large, pairs.batch)
    gradient = _gradient(o, columns, lse, constant, negatives, pairs, group)
    for rows in _slices(pairs.batch, IMAGES):
        weights = coefficient[:, :, rows].permute(2, 0, 1).contiguous()
        gradient[:, rows] += _by_image(weights, t[:, rows].transpose(0, 1).contiguous()).transpose(0, 1)
    gradient *= grad / (pairs.count * pairs.batch * pairs.temperature)
    along = (o * gradient).sum(2, keepdim=True)
    gradient.addcmul_(o, along, value=-1.0).mul_(factor[..., None])
    return gradient.flatten(0, 1).to(online.dtype)


@dataclass
class _Sums:
    """Over the negatives of each prediction, [L + S, L, B] each.

    log_sum: log Σ exp(s), −∞ where there is none. difference, own: means of s − s' and of s under exp(s), s' being the
    counterpart's logit; largest: max s. Zero where they were not asked for.
    """

    log_sum: Tensor
    difference: Tensor
    own: Tensor
    largest: Tensor


class _Block:
    """Scratch for the logits of `images` × `negatives` over all pairs, and where each pair lies in it."""

    def __init__(self, pairs: Pairs, count: int) -> None:
        self.pairs = pairs
        self.targets = [[j for j in range(pairs.large) if pairs.diagonal or i != j] for i in range(pairs.views)]
        rows = sum(map(len, self.targets))
        self.negatives = max(1, min(count, NEGATIVES))
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


def _sums(o: Tensor, columns: Tensor, negatives: Tensor | None, pairs: Pairs, metrics: bool, group: str) -> _Sums:
    block = _Block(pairs, columns.shape[1])
    chosen_columns = block.columns_of(columns)
    shape = (pairs.views, pairs.large, pairs.batch)
    sums = _Sums(torch.full(shape, -torch.inf), torch.zeros(shape), torch.zeros(shape), torch.full(shape, LOWEST))
    expectation = metrics or (pairs.invariance and pairs.stop_gradient == "entropy")
    known = not pairs.online
    with plain_arithmetic(pairs.products):
        for rows in _slices(pairs.batch, block.images):
            count = sum(map(len, block.targets)) * (rows.stop - rows.start)
            total, difference, own = torch.zeros(3, count).unbind()
            top = torch.full((count,), LOWEST)
            for part in _slices(columns.shape[1], block.negatives):
                flat, logits = _fill(block, o[:, rows], chosen_columns, part)
                _exclude(logits, rows, part, negatives, pairs, group)
                exps = block.views(1, rows.stop - rows.start, part.stop - part.start)[0]
                if known:
                    if metrics:
                        torch.maximum(top, flat.amax(1), out=top)
                    torch.exp(flat, out=exps)
                else:
                    higher = torch.maximum(top, flat.amax(1))
                    rescale = (top - higher).exp_()
                    for running in (total, difference, own):
                        running *= rescale
                    top = higher
                    torch.sub(flat, top[:, None], out=exps).exp_()
                total += exps.sum(1)
                if pairs.invariance:
                    difference += _differences(block, logits).mul_(exps).sum(1)
                if expectation:
                    own += flat.mul_(exps).sum(1)
            inside = (slice(None), slice(None), rows)
            block.scatter(total.log() if known else total.log() + top, sums.log_sum[inside])
            scale = torch.where(total > 0, 1.0 / total, 0.0)
            block.scatter(difference * scale, sums.difference[inside])
            block.scatter(own * scale, sums.own[inside])
            block.scatter(top, sums.largest[inside])
    return sums


def _gradient(
    o: Tensor,
    columns: Tensor,
    lse: Tensor,
    constant: Tensor,
    negatives: Tensor | None,
    pairs: Pairs,
    group: str,
) -> Tensor:
    """Σ_jn G_ij(b, n) column_jn [L + S, B, D] over the negatives; G is the derivative by the logits, times τ."""
    block, gradient = _Block(pairs, columns.shape[1]), torch.zeros_like(o)
    chosen_columns = block.columns_of(columns)
    with plain_arithmetic(pairs.products):
        for rows in _slices(pairs.batch, block.images):
            own_lse = block.rows_of(lse[:, :, rows])
            for part in _slices(columns.shape[1], block.negatives):
                size = (rows.stop - rows.start, part.stop - part.start)
                flat, logits = _fill(block, o[:, rows], chosen_columns, part)
                _exclude(logits, rows, part, negatives, pairs, group)
                p, probabilities = block.views(1, *size)
                torch.sub(flat, own_lse[:, None], out=p).exp_()
                weights = probabilities
                if pairs.invariance:
                    weights = block.views(2, *size)[1]
                    for i, j in block.each():
                        _weights(block, logits, probabilities, weights, i, j, constant[:, :, rows])
                for i, targets in enumerate(block.targets):
                    if targets:
                        chosen = chosen_columns[i][:, part].flatten(0, 1)
                        gradient[i, rows].addmm_(weights[i].flatten(1), chosen)
    return gradient


def _weights(
    block: _Block, logits: list[Tensor], p: list[Tensor], out: list[Tensor], i: int, j: int, constant: Tensor
) -> None:
    """G_ij of a block: p (w + c + α_log s − α_expectation s') + α_second Σ (p − p') over what has p as counterpart."""
    pairs = block.pairs
    weight, mine = block.at(out, i, j), block.at(p, i, j)
    reverse = _reverse(pairs, i, j)
    base = 1.0 if i != j or pairs.self_pairs else 0.0
    base += pairs.through_second * len(reverse)
    if i != j and pairs.invariance:
        own, other = block.at(logits, i, j), block.at(logits, *_counterpart(pairs, i, j))
        torch.mul(other, -pairs.through_expectation, out=weight)
        if pairs.through_log:
            weight.add_(own, alpha=pairs.through_log)
        weight.add_(constant[i, j, :, None] + base).mul_(mine)
    else:
        torch.mul(mine, base, out=weight)
    if pairs.through_second:
        for other_pair in reverse:
            weight.sub_(block.at(p, *other_pair), alpha=pairs.through_second)


def _counterpart(pairs: Pairs, i: int, j: int) -> tuple[int, int]:
    """The pair whose prediction p_ij should equal."""
    return (j, i) if i < pairs.large else (j, j)


def _reverse(pairs: Pairs, i: int, j: int) -> list[tuple[int, int]]:
    """The pairs whose counterpart is (i, j)."""
    if not pairs.invariance or i >= pairs.large:
        return []
    return [(j, i)] if i != j else [(s, j) for s in range(pairs.large, pairs.views)]


def _fill(block: _Block, o: Tensor, columns: list[Tensor], part: slice) -> tuple[Tensor, list[Tensor]]:
    """Logits of a block of images [L + S, b, D] against a block of each view's negatives [J, N, D]."""
    flat, logits = block.views(0, o.shape[1], part.stop - part.start)
    for i, targets in enumerate(block.targets):
        if targets:
            chosen = columns[i][:, part].flatten(0, 1)
            out = logits[i].flatten(1)
            torch.addmm(out, o[i], chosen.T, beta=0.0, alpha=1.0 / block.pairs.temperature, out=out)
    return flat, logits


def _differences(block: _Block, logits: list[Tensor]) -> Tensor:
    """Logits less those of the counterpart; 0 for a view and itself."""
    flat, parts = block.views(2, logits[0].shape[0], logits[0].shape[2])
    for i, j in block.each():
        out = block.at(parts, i, j)
        if i == j:
            out.zero_()
        else:
            torch.sub(block.at(logits, i, j), block.at(logits, *_counterpart(block.pairs, i, j)), out=out)
    return flat


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


def _finish(sums: _Sums, positive: Tensor, rounded: Tensor | None, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """-> table [3, (L + S)·L, B]; per image the mean over pairs of −log p, divergence, accuracy, entropy [B, 4 or 2].

    A prediction's *share* is the probability of all its negatives. Everything that vanishes as the task is solved is
    written in shares, and never as what is left of 1.
    """
    margin = sums.log_sum - positive
    lse, share, contrastive = torch.logaddexp(sums.log_sum, positive), margin.sigmoid(), F.softplus(margin)
    counted = torch.ones(pairs.views, pairs.large, 1)
    if not pairs.self_pairs:
        counted.view(-1)[: pairs.large**2 : pairs.large + 1] = 0.0
    coefficient, constant = -share * counted, torch.zeros_like(share)
    rows = [contrastive]
    own = share * sums.own
    if pairs.invariance:
        invariance = torch.zeros_like(share)
        for i in range(pairs.views):
            for j in range(pairs.large):
                if i == j:
                    continue
                a, b = (i, j), _counterpart(pairs, i, j)
                delta, change = positive[a] - positive[b], share[a] * sums.difference[a]
                invariance[a] = change - share[a] * delta + contrastive[b] - contrastive[a]
                mean_change = torch.lerp(delta, sums.difference[a], share[a])
                expected = torch.lerp(positive[a], sums.own[a], share[a])
                log, expectation = pairs.through_log, pairs.through_expectation
                constant[a] = (expectation - log) * expected - expectation * mean_change
                at_positive = (log - expectation) * (share[a] * positive[a] - own[a])
                at_positive += expectation * (share[a] * delta - change)
                coefficient[a] += (1.0 - share[a]) * at_positive
                coefficient[b] += pairs.through_second * (share[a] - share[b])
        rows.append(invariance)
    else:
        rows.append(torch.zeros_like(share))
    if rounded is not None:
        entropy = lse - torch.lerp(positive, sums.own, share)
        rows += [(rounded > sums.largest + TIE / pairs.temperature).float(), entropy]
    per_image = [(row * counted).sum((0, 1)) / pairs.count for row in rows]
    return torch.stack([lse, constant, coefficient]).flatten(1, 2), torch.stack(per_image, 1)


def _views(x: Tensor, views: int) -> tuple[Tensor, Tensor]:
    """Unit rows in fp32 [views, B, D] and 1 / ‖x‖ [views, B]."""
    rows, factor = unit_rows(x.float())
    return rows.view(views, -1, x.shape[1]), factor.view(views, -1)


def _columns(target: Tensor, t: Tensor, negatives: Tensor | None, pairs: Pairs, group: str) -> Tensor:
    """Unit rows of the images that may be negatives, of all ranks, [L, N, D] in fp32."""
    if negatives is not None:
        images = size_and_rank(group)[0] * pairs.batch
        listed = negatives.tolist()
        if listed and not (min(listed) >= 0 and max(listed) < images):
            raise ValueError(f"negatives must be images of the batch, 0 to {images - 1}, got {listed}")
        rows, _ = unit_rows(sampled_rows(target, pairs.large, negatives, group).float())
        return rows.view(pairs.large, len(negatives), target.shape[1])
    if not group:
        return t
    rows = gather_rows(t.flatten(0, 1).to(pairs.products), pairs.large, group)
    return rows.float().view(pairs.large, -1, target.shape[1])


def _positives(o: Tensor, t: Tensor) -> Tensor:
    """Products of each image's online rows with its target rows, [L + S, L, B]."""
    parts = []
    for rows in _slices(o.shape[1], IMAGES):
        part = _by_image(o[:, rows].transpose(0, 1).contiguous(), t[:, rows].transpose(0, 1).contiguous().mT)
        parts.append(part.permute(1, 2, 0))
    return torch.cat(parts, 2)


def _by_image(a: Tensor, b: Tensor) -> Tensor:
    """A small exact product for every image."""
    with plain_arithmetic(torch.float32):
        return torch.bmm(a, b)


def _slices(stop: int, step: int) -> list[slice]:
    return [slice(i, min(i + step, stop)) for i in range(0, stop, step)]
