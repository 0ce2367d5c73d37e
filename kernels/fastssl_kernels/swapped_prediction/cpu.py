"""SwAV's loss on the CPU: blocks of scores, never a whole matrix.

With w_b = Σ_k t_bk of a crop's target t, the sum of the codes of the others, and p = softmax(s / τ):

    loss_b = w_b lse_b − Σ_k t_bk s_bk / τ,     dloss_b/ds_bk = (w_b p_bk − t_bk) / τ
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..arithmetic import plain_arithmetic

# Elements of a block: scores, exponentials and target of 4 MB each. Smaller ones wait more for the slowest thread.
BLOCK = 1 << 20


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
    """-> loss, gradients of z and prototypes (empty unless wanted), fp32; three products where both are wanted."""
    count, batch, width = codes.shape
    crops = len(z) // batch
    by_crop, columns = z.float().view(crops, batch, -1), prototypes.float()
    loss = z.new_zeros((), dtype=torch.float32)
    by_z = torch.zeros_like(by_crop) if z_gradient else z.new_empty(0, dtype=torch.float32)
    by_prototypes = torch.zeros_like(columns) if prototype_gradient else z.new_empty(0, dtype=torch.float32)
    scratch = columns.new_empty(2, _rows(width, batch) * width)
    with plain_arithmetic(products):
        for block in _blocks(batch, width):
            for v, target in _targets([code[block].float() for code in codes], assign, crops):
                rows = by_crop[v, block]
                logits, exps = (part[: target.numel()].view(target.shape) for part in scratch)
                torch.addmm(logits, rows, columns.T, beta=0.0, alpha=1.0 / temperature, out=logits)
                logits -= logits.amax(1, keepdim=True)
                sums = torch.exp(logits, out=exps).sum(1)
                mass = target.sum(1)
                loss += torch.dot(mass, sums.log()) - torch.dot(target.flatten(), logits.flatten())
                if z_gradient or prototype_gradient:
                    exps.mul_((mass / sums)[:, None]).sub_(target)
                if z_gradient:
                    torch.mm(exps, columns, out=by_z[v, block])
                if prototype_gradient:
                    by_prototypes.addmm_(exps.T, rows)
    scale = 1.0 / (count * (crops - 1) * batch)
    for gradient in (by_z, by_prototypes):
        gradient *= scale / temperature
    return loss * scale, by_z.view(z.shape) if z_gradient else by_z, by_prototypes


def _targets(codes: list[Tensor], assign: list[int], crops: int) -> Iterator[tuple[int, Tensor]]:
    """Crops with the sum of all codes but their own, contiguous; none for a crop that has no other's."""
    everyone = codes[0].contiguous() if len(codes) == 1 else torch.stack(codes).sum(0)
    for v in range(crops):
        others = [code for code, i in zip(codes, assign, strict=True) if i != v]
        if len(others) == len(codes):
            yield v, everyone
        elif others:
            yield v, others[0].contiguous() if len(others) == 1 else torch.stack(others).sum(0)


def code_cross_entropy(scores: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    rows, width = scores.shape
    losses, statistics = (scores.new_empty(shape, dtype=torch.float32) for shape in ((rows,), (3, rows)))
    scratch = statistics.new_empty(_rows(width, rows), width)
    with plain_arithmetic(torch.float32):
        for block in _blocks(rows, width):
            logits = _logits(scores[block], scratch, temperature)
            part, (top, log_sum, mass) = target[block].float(), statistics[:, block]
            torch.amax(logits, 1, out=top)
            torch.linalg.vecdot(part, logits.sub_(top[:, None]), out=losses[block])
            torch.log(logits.exp_().sum(1), out=log_sum)
            torch.sum(part, 1, out=mass)
        return torch.addcmul(-losses, statistics[1], statistics[2]), statistics


def code_cross_entropy_backward(
    grad: Tensor, scores: Tensor, target: Tensor, statistics: Tensor, temperature: float
) -> Tensor:
    rows, width = scores.shape
    result = torch.empty_like(scores, memory_format=torch.contiguous_format)
    scratch = statistics.new_empty(_rows(width, rows), width)
    top, log_sum, mass = statistics[:, :, None]
    scale = (grad / temperature)[:, None]
    with plain_arithmetic(torch.float32):
        for block in _blocks(rows, width):
            shares = _logits(scores[block], scratch, temperature).sub_(top[block]).sub_(log_sum[block]).exp_()
            shares.mul_(mass[block]).sub_(target[block])
            if result.dtype == torch.float32:
                torch.mul(shares, scale[block], out=result[block])
            else:
                result[block] = shares.mul_(scale[block])
    return result


def _logits(scores: Tensor, scratch: Tensor, temperature: float) -> Tensor:
    out = scratch[: len(scores)]
    if scores.dtype == torch.float32:
        return torch.mul(scores, 1.0 / temperature, out=out)
    return out.copy_(scores).mul_(1.0 / temperature)


def _rows(width: int, rows: int) -> int:
    """Rows of a block."""
    return min(rows, max(1, BLOCK // width))


def _blocks(rows: int, width: int) -> list[slice]:
    step = _rows(width, rows)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
