"""Sinkhorn on the CPU: few operations on large blocks of rows, and no buffer of their size but the result.

With E_bk = exp(s_bk / ε) the codes are u_k E_bk v_b. A pass over the rows takes u from the last pass, computes
v_b = 1 / Σ_k E_bk u_k of a block and at once adds E_bk v_b to the sums r_k of the next, u_k = 1 / r_k. The exponentials
of the batch are stored where its codes will be; those of a queue are computed again, which costs less than the page
faults of a fresh buffer.

E itself is kept while |s| / ε ≤ `PLAIN`, as for cosines. Beyond that, passes are softmaxes of s / ε + log u: each row
relative to its own largest term, so that nothing overflows and no prototype loses its mass. All ranks take the same of
the two ways, or their collectives would not meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arithmetic import plain_arithmetic
from ..ema.scalar import host_scalar
from ..gather import all_reduce, size_and_rank

# exp(2 · PLAIN) times any number of prototypes is within fp32.
PLAIN = 40.0
# Elements of a block. Few and large: every operation waits for the slowest thread, and on two cores that others use too
# 2^19 was ten times slower than 2^24, while a cache of 2 MB a core gained nothing where the cores were free.
KEPT_BLOCK = 1 << 24
# Of a block that needs memory of its own: 16 MB.
BLOCK = 1 << 22
# On a GPU, where `stabilised` serves more prototypes than fit on chip.
DEVICE_BLOCK = 1 << 25
# Stands for −∞ where −∞ − (−∞) would be NaN.
EXCLUDED = -1e30


@dataclass
class _Rows:
    """Rows of one problem: their scores, where exponentials are kept (None: nowhere), and whether codes are wanted.

    Codes end where exponentials are kept; that may be where the scores are.
    """

    problem: int
    scores: Tensor
    kept: Tensor | None
    wanted: bool

    def blocks(self, size: int = 0) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Scores and kept exponentials, `size` elements at a time, or as many as the exponentials' place allows."""
        step = max(1, (size or (BLOCK if self.kept is None else KEPT_BLOCK)) // self.scores.shape[1])
        for start in range(0, len(self.scores), step):
            block = slice(start, start + step)
            yield self.scores[block], None if self.kept is None else self.kept[block]


def sinkhorn(scores: Tensor, queue: Tensor | None, epsilon: float, iterations: int, group: str) -> Tensor:
    codes = scores.new_empty(scores.shape, dtype=torch.float32)
    rows = rows_of(scores, queue, codes, None)
    with plain_arithmetic(torch.float32):
        if not _plain(rows, epsilon, iterations, group):
            stabilised(rows, epsilon, iterations, group)
    return codes


def sinkhorn_from_features(
    z: Tensor,
    prototypes: Tensor,
    queue: Tensor | None,
    epsilon: float,
    iterations: int,
    products: torch.dtype,
    group: str,
) -> Tensor:
    scores, queued = _scores(z, prototypes, products), _scores(queue, prototypes, products)
    assert scores is not None
    with plain_arithmetic(torch.float32):
        if _plain(rows_of(scores, queued, scores, queued), epsilon, iterations, group):
            return scores
        # Exponentials have taken the place of the scores.
        scores, queued = _scores(z, prototypes, products), _scores(queue, prototypes, products)
        assert scores is not None
        stabilised(rows_of(scores, queued, codes := torch.empty_like(scores), None), epsilon, iterations, group)
    return codes


def _scores(z: Tensor | None, prototypes: Tensor, products: torch.dtype) -> Tensor | None:
    if z is None:
        return None
    with plain_arithmetic(products):
        return torch.matmul(z.float(), prototypes.float().mT.expand(len(z), -1, -1))


def rows_of(scores: Tensor, queue: Tensor | None, kept: Tensor, queue_kept: Tensor | None) -> list[_Rows]:
    rows = [_Rows(h, part, kept[h], True) for h, part in enumerate(scores)]
    if queue is not None:
        rows += [_Rows(h, part, None if queue_kept is None else queue_kept[h], False) for h, part in enumerate(queue)]
    return rows


def _plain(rows: list[_Rows], epsilon: float, iterations: int, group: str) -> bool:
    """Write the codes, or return False where scores are too large for plain exponentials."""
    problems, width = _shape(rows)
    total = _total_rows(rows, group)
    scratch = torch.empty(max(1, BLOCK // width), width)
    mass, bound = torch.zeros(problems, width), torch.zeros(())
    for part in rows:
        for scores, kept in part.blocks():
            for extreme in scores.aminmax():
                bound = torch.maximum(bound, extreme.float().abs())
            mass[part.problem] += _exponentials(scores, kept, scratch, epsilon).sum(0)
    if not host_scalar(all_reduce(bound, "max", group), "scores") <= PLAIN * epsilon:
        return False
    for _ in range(iterations - 1):
        weight = _weights(mass, total, group)
        mass.zero_()
        for part in rows:
            u, r = weight[part.problem], mass[part.problem]
            for scores, kept in part.blocks():
                block = _exponentials(scores, None, scratch, epsilon) if kept is None else kept
                v = torch.mv(block, u).reciprocal_()
                r.addmv_(block.T, v)
    weight = _weights(mass, total, group)
    for part in rows:
        for _, kept in part.blocks() if part.wanted else ():
            assert kept is not None
            v = torch.mv(kept, weight[part.problem]).reciprocal_()
            kept.mul_(weight[part.problem]).mul_(v[:, None])
    return True


def _exponentials(scores: Tensor, kept: Tensor | None, scratch: Tensor, epsilon: float) -> Tensor:
    out = scratch[: len(scores)] if kept is None else kept
    if scores.dtype == torch.float32:
        torch.mul(scores, 1.0 / epsilon, out=out)
    else:
        out.copy_(scores).mul_(1.0 / epsilon)
    return out.exp_()


def _weights(mass: Tensor, total: int, group: str) -> Tensor:
    """u [H, K] from this process's column sums; the factor keeps u and v from drifting apart.

    It must be the same on all ranks, which may hold different numbers of rows: there the sums themselves give one.
    """
    if not group:
        return (total / mass.shape[1]) / mass
    return all_reduce(mass, "sum", group).mean(1, keepdim=True) / mass


def stabilised(rows: list[_Rows], epsilon: float, iterations: int, group: str) -> None:
    problems, width = _shape(rows)
    size = BLOCK if rows[0].scores.device.type == "cpu" else DEVICE_BLOCK
    total = _total_rows(rows, group)
    top = rows[0].scores.new_full((problems, width), EXCLUDED, dtype=torch.float32)
    mass = torch.zeros_like(top)
    for part in rows:
        for scores, _ in part.blocks(size):
            torch.maximum(top[part.problem], _logits(scores, epsilon).amax(0), out=top[part.problem])
    all_reduce(top, "max", group)
    for part in rows:
        for scores, _ in part.blocks(size):
            mass[part.problem] += (_logits(scores, epsilon) - top[part.problem]).exp_().sum(0)
    all_reduce(mass, "sum", group)
    potential = torch.where(top > EXCLUDED, -top - mass.log(), EXCLUDED)
    for step in range(iterations):
        last = step == iterations - 1
        mass.zero_()
        for part in rows:
            for scores, kept in part.blocks(size) if part.wanted or not last else ():
                shares = _logits(scores, epsilon).add_(potential[part.problem]).softmax(1)
                if not last:
                    mass[part.problem] += shares.sum(0)
                elif kept is not None:
                    kept.copy_(shares)
        if not last:
            drift = torch.log(all_reduce(mass, "sum", group) * (width / total))
            potential = torch.where(mass > 0, potential - drift, EXCLUDED)


def _logits(scores: Tensor, epsilon: float) -> Tensor:
    return scores.float().mul(1.0 / epsilon).clamp_min_(EXCLUDED)


def _shape(rows: list[_Rows]) -> tuple[int, int]:
    """Problems and prototypes."""
    return 1 + max(part.problem for part in rows), rows[0].scores.shape[1]


def _total_rows(rows: list[_Rows], group: str) -> int:
    """Rows of one problem: on all ranks, if they hold equally many. Only a factor of all rows of a rank rests on it."""
    return size_and_rank(group)[0] * sum(len(part.scores) for part in rows if part.problem == 0)
