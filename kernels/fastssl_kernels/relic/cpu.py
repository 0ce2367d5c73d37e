"""The operator bodies on the CPU: block sums from `blocks`, positives and normalisation in fp32 around them.

Positives join at the end: the gradient of aligned views is a small difference, which products of rounded operands would
drown.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arithmetic import plain_arithmetic
from ..gather import gather_rows, size_and_rank
from ..nt_xent.reference import TIE
from ..rows import unit_rows
from .blocks import Block, Running, Sums, add_gradient, counterpart, differences, fill, one_pass
from .negatives import sampled_rows
from .pairs import Pairs

# Images whose rows are put side by side for their small products.
IMAGES = 128


def relic_forward(
    online: Tensor,
    target: Tensor,
    negatives: Tensor | None,
    pairs: Pairs,
    metrics: bool,
    gradient: bool,
    group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> loss, metrics [4] or [0], columns [L·N, D], table [3, (L + S)·L, B]; see `operators`.

    Where the gradient is wanted and `one_pass` is enough, it is made at once: it takes the place of the columns,
    [(L + S)·B, D] in fp32 and for an upstream gradient of 1, and the table is [3, 0, B].
    """
    (o, factor), (t, _) = _views(online, pairs.views), _views(target, pairs.large)
    columns = _columns(target, t, negatives, pairs, group)
    positive = _positives(o, t) / pairs.temperature
    rounded = None
    if metrics:
        rounded = positive
        if pairs.products == torch.bfloat16:
            rounded = _positives(o.bfloat16().float(), t.bfloat16().float()) / pairs.temperature
    if gradient and one_pass(pairs, columns.shape[1]):
        per_image, coefficient, total = _at_once(o, columns, positive, rounded, negatives, pairs, group)
        saved, table = _finish_gradient(total, coefficient, o, factor, t, pairs), o.new_empty(3, 0, pairs.batch)
    else:
        sums = _sums(o, columns, negatives, pairs, metrics, group)
        table, per_image = _finish(sums, positive, rounded, pairs)
        saved = columns.flatten(0, 1)
    means = gather_rows(per_image, 1, group).mean(0)
    loss = means[0] + pairs.alpha * means[1] if pairs.invariance else means[0].clone()
    return loss, means.clone() if metrics else means.new_empty(0), saved, table


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
    if not table.shape[1]:
        return (columns * grad).to(online.dtype)
    (o, factor), (t, _) = _views(online, pairs.views), _views(target, pairs.large)
    columns = columns.view(pairs.large, len(columns) // pairs.large, columns.shape[1])
    lse, constant, coefficient = table.view(3, pairs.views, pairs.large, pairs.batch)
    total = _gradient(o, columns, lse, constant, negatives, pairs, group)
    return (_finish_gradient(total, coefficient, o, factor, t, pairs) * grad).to(online.dtype)


def _finish_gradient(total: Tensor, coefficient: Tensor, o: Tensor, factor: Tensor, t: Tensor, pairs: Pairs) -> Tensor:
    """Add the positives to Σ G column, and pass the normalisation: [(L + S)·B, D]; overwrites `total`."""
    for rows in _slices(pairs.batch, IMAGES):
        weights = coefficient[:, :, rows].permute(2, 0, 1).contiguous()
        total[:, rows] += _by_image(weights, t[:, rows].transpose(0, 1).contiguous()).transpose(0, 1)
    total *= 1.0 / (pairs.count * pairs.batch * pairs.temperature)
    along = (o * total).sum(2, keepdim=True)
    return total.addcmul_(o, along, value=-1.0).mul_(factor[..., None]).flatten(0, 1)


def _sums(o: Tensor, columns: Tensor, negatives: Tensor | None, pairs: Pairs, metrics: bool, group: str) -> Sums:
    block, found = Block(pairs, columns.shape[1]), []
    chosen = block.columns_of(columns)
    with plain_arithmetic(pairs.products):
        for rows in _slices(pairs.batch, block.images):
            running = Running(block, rows.stop - rows.start, metrics)
            for part in _slices(columns.shape[1], block.negatives):
                running.add(*fill(block, o, chosen, rows, part, negatives, group))
            found.append(running.finish())
    return Sums(*(torch.cat([getattr(part, field.name) for part in found], 2) for field in dataclasses.fields(Sums)))


def _at_once(
    o: Tensor,
    columns: Tensor,
    positive: Tensor,
    rounded: Tensor | None,
    negatives: Tensor | None,
    pairs: Pairs,
    group: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> what `_finish` says of each image, the positives' coefficients [L + S, L, B], Σ G column [L + S, B, D].

    The logits of a block and their exponentials are still there when the row's denominator is known.
    """
    block, total = Block(pairs, columns.shape[1]), torch.zeros_like(o)
    chosen, part = block.columns_of(columns), slice(0, columns.shape[1])
    images, coefficients = [], []
    with plain_arithmetic(pairs.products):
        for rows in _slices(pairs.batch, block.images):
            running = Running(block, rows.stop - rows.start, rounded is not None)
            flat, logits = fill(block, o, chosen, rows, part, negatives, group)
            exps = running.add(flat, logits)
            seen = None if rounded is None else rounded[:, :, rows]
            table, per_image = _finish(running.finish(), positive[:, :, rows], seen, pairs)
            lse, constant, coefficient = table.view(3, pairs.views, pairs.large, -1)
            if not running.known:
                torch.sub(flat, block.rows_of(lse)[:, None], out=exps).exp_()
            elif not block.one_each:
                exps.mul_(block.rows_of(lse).neg_().exp_()[:, None])
            add_gradient(block, logits, chosen, constant, part, total[:, rows])
            if running.known and block.one_each:
                total[:, rows] *= block.rows_of(lse).neg_().exp_().view(pairs.views, -1, 1)
            images.append(per_image)
            coefficients.append(coefficient)
    return torch.cat(images), torch.cat(coefficients, 2), total


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
    block, total = Block(pairs, columns.shape[1]), torch.zeros_like(o)
    chosen = block.columns_of(columns)
    with plain_arithmetic(pairs.products):
        for rows in _slices(pairs.batch, block.images):
            own_lse = block.rows_of(lse[:, :, rows])
            for part in _slices(columns.shape[1], block.negatives):
                flat, logits = fill(block, o, chosen, rows, part, negatives, group)
                p = block.views(1, rows.stop - rows.start, part.stop - part.start)[0]
                torch.sub(flat, own_lse[:, None], out=p).exp_()
                if pairs.invariance:
                    differences(block, logits)
                add_gradient(block, logits, chosen, constant[:, :, rows], part, total[:, rows])
    return total


def _finish(sums: Sums, positive: Tensor, rounded: Tensor | None, pairs: Pairs) -> tuple[Tensor, Tensor]:
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
                a, b = (i, j), counterpart(pairs, i, j)
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
