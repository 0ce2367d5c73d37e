"""SwAV's loss written as its definition: every score in memory, any dtype, differentiable.

    loss = mean over i in assign, mean over v ≠ i, mean over b of   −Σ_k q_ibk log softmax_k(s_vb / τ)

Source: Caron et al. 2020 (SwAV, arXiv 2006.09882), equations 2 and 6.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def swapped_prediction_reference(
    scores: Tensor, codes: Tensor, *, temperature: float, assign: Sequence[int] = (0, 1)
) -> Tensor:
    """The loss of `scores` [V, B, K] and of `codes` [A, B, K], those of the crops `assign`, in their dtype."""
    log_shares = torch.log_softmax(scores / temperature, -1)
    losses = [
        torch.stack([-(code * log_shares[v]).sum(-1).mean() for v in range(len(scores)) if v != i]).mean()
        for i, code in zip(assign, codes.detach(), strict=True)
    ]
    return torch.stack(losses).mean()
