"""Two numbers that show a collapsing representation long before accuracy does. Both stay on the device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

RANKME_EPSILON = 1e-7


def embedding_std(z: Tensor) -> Tensor:
    """Mean over dimensions of the standard deviation of L2-normalised embeddings (SimSiam, arXiv 2011.10566, sec. 4.1).

    Directions spread evenly over the sphere give 1/√D; 0 means that every image has the same embedding.

    Args:
        z: `[B, D]` embeddings, B ≥ 1, any floating dtype.

    Returns:
        0-d float32 on the device of `z`, in 0 … 1/√D.
    """
    return normalize(_matrix(z), dim=1).std(dim=0, correction=0).mean()


def rankme(z: Tensor) -> Tensor:
    """Effective rank of the embeddings (RankMe, arXiv 2210.02885, eq. 1): exp of the entropy of the singular values.

        p_k = σ_k / Σ σ + ε,   RankMe = exp(−Σ p_k log p_k),   ε = 1e-7

    Args:
        z: `[B, D]` embeddings, neither centred nor normalised, any floating dtype. The paper takes 25,600 rows; a few
            times D is enough to follow a training.

    Returns:
        0-d float32 on the device of `z`, from 1 (one direction, or only zeros) to min(B, D).
    """
    sigma = torch.linalg.svdvals(_matrix(z))
    p = sigma / sigma.sum().clamp_min(torch.finfo(sigma.dtype).tiny) + RANKME_EPSILON
    return (-(p * p.log()).sum()).exp()


def _matrix(z: Tensor) -> Tensor:
    if z.ndim != 2 or z.numel() == 0:
        raise ValueError(f"z must be a matrix of embeddings [B, D] that is not empty, got shape {tuple(z.shape)}")
    return z.detach().float()
