"""The contrastive losses written as their definition: every logit in memory, any dtype, differentiable.

NT-Xent (Chen et al. 2020, "A Simple Framework for Contrastive Learning", equation 1), with unit rows z_i and
s_ij = z_i·z_j:

    loss_i = log Σ_{j≠i} exp(s_ij / τ) − mean_{p ∈ P(i)} s_ip / τ          loss = mean_i loss_i

P(i) are the other views of row i's image. With two views there is one and the loss is equation 1. With more, every
positive is in the denominator of the others, as in supervised contrastive learning (Khosla et al. 2020, equation 2).
Rows of a queue join every denominator as further negatives (SimCLR v2, Chen et al. 2020, "Big Self-Supervised Models
are Strong Semi-Supervised Learners", section 2).

InfoNCE (van den Oord et al. 2018; He et al. 2020, "Momentum Contrast", equation 1), key i the positive of query i:

    loss_i = log(exp(q_i·k_i / τ) + Σ_{n ∈ N(i)} exp(q_i·n / τ)) − q_i·k_i / τ

N(i) are the rows of a queue, or without a queue the other keys.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..rows import unit_rows

# Cosines closer than this are equal: a collapsed network must not look accurate by the luck of rounding.
TIE = 1e-5


class Metrics(NamedTuple):
    """What the contrastive task looks like from the inside; detached scalars, fp32.

    accuracy: share of rows that have a positive closer than every negative (a tie counts as a miss), 0 to 1.
    entropy: mean entropy of softmax_j(s_ij / τ) over the row's candidates, in nats.
    """

    accuracy: Tensor
    entropy: Tensor


def nt_xent_reference(
    z: Tensor,
    *,
    temperature: float,
    views: int = 2,
    queue: Tensor | None = None,
    normalize: bool = True,
    return_metrics: bool = False,
) -> Tensor | tuple[Tensor, Metrics]:
    """Equation 1 on `z` [views·B, D], view-major, and `queue` [K, D], in the dtype of `z`; see `nt_xent`."""
    if normalize:
        z, _ = unit_rows(z)
    rows = torch.arange(len(z), device=z.device)
    same_image = rows[:, None] % (len(z) // views) == rows % (len(z) // views)
    itself = rows[:, None] == rows
    logits = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
    positive = same_image & ~itself
    if queue is not None:
        logits = torch.cat([logits, z @ queue.to(z.dtype).T / temperature], 1)
        positive = torch.cat([positive, positive.new_zeros(len(z), len(queue))], 1)
    return _cross_entropy(logits, positive, temperature, return_metrics)


def info_nce_reference(
    query: Tensor,
    key: Tensor,
    *,
    queue: Tensor | None = None,
    temperature: float,
    normalize: bool = True,
    return_metrics: bool = False,
) -> Tensor | tuple[Tensor, Metrics]:
    """InfoNCE of `query` [B, D] against `key` [B, D] and `queue` [K, D]; see `info_nce`."""
    if normalize:
        (query, _), (key, _) = unit_rows(query), unit_rows(key)
    if queue is None:
        logits = query @ key.T / temperature
        positive = torch.eye(len(query), dtype=torch.bool, device=query.device)
    else:
        own = (query * key).sum(1, keepdim=True)
        logits = torch.cat([own, query @ queue.to(query.dtype).T], 1) / temperature
        positive = torch.zeros_like(logits, dtype=torch.bool)
        positive[:, 0] = True
    return _cross_entropy(logits, positive, temperature, return_metrics)


def _cross_entropy(
    logits: Tensor, positive: Tensor, temperature: float, return_metrics: bool
) -> Tensor | tuple[Tensor, Metrics]:
    """Mean over rows of log-sum-exp minus the mean positive logit; a logit of −∞ is no candidate."""
    log_sum = logits.logsumexp(1)
    share = positive.to(logits.dtype) / positive.sum(1, keepdim=True)
    # No 0 · −∞: a row is not a candidate of itself.
    finite = logits.masked_fill(logits == -torch.inf, 0.0)
    loss = (log_sum - (share * finite).sum(1)).mean()
    if not return_metrics:
        return loss
    best_positive = logits.masked_fill(~positive, -torch.inf).amax(1)
    best_negative = logits.masked_fill(positive, -torch.inf).amax(1)
    accuracy = (best_positive > best_negative + TIE / temperature).to(logits.dtype).mean()
    entropy = (log_sum - (logits.softmax(1) * finite).sum(1)).mean()
    return loss, Metrics(accuracy.detach(), entropy.detach())
