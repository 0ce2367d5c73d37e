"""Sinkhorn's iterations in the logarithm: the definition of correct for any dtype.

    log Q ← s / ε;   `iterations` times:   log Q_bk −= log Σ_b Q_bk,   then   log Q_bk −= log Σ_k Q_bk

Source: Caron et al. 2020 (SwAV, arXiv 2006.09882), section 3.1 and appendix A; Asano et al. 2020 (SeLa, 1911.05371).
The published code also divides by the total at first, and by K and B on the way: constants that the last step, after
which every row sums to 1, divides out again. A prototype whose scores are all −∞ gets no mass.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sinkhorn_reference(
    scores: Tensor, *, epsilon: float = 0.05, iterations: int = 3, queue: Tensor | None = None
) -> Tensor:
    """Codes [..., B, K] of `scores` [..., B, K] beside those of a `queue` [..., Q, K], in their dtype."""
    rows = scores if queue is None else torch.cat([scores, queue], -2)
    log_codes = rows / epsilon
    for _ in range(iterations):
        log_codes = _normalised(log_codes, -2)
        log_codes = _normalised(log_codes, -1)
    return log_codes[..., : scores.shape[-2], :].exp()


def _normalised(logits: Tensor, dim: int) -> Tensor:
    log_sum = logits.logsumexp(dim, keepdim=True)
    return logits - torch.where(log_sum == -torch.inf, 0.0, log_sum)
