"""Spherical k-means over the embeddings of all ranks (Dhillon and Modha, 2001).

Unit rows z and unit centroids c, alternating, from centroids that are rows:

    a_i = argmax_k z_i·c_k,      c_k = Σ_{a_i = k} z_i / ‖Σ_{a_i = k} z_i‖

A cluster that loses all its rows keeps its centroid. Sums are of whole numbers of 2⁻³⁶, which add up to the same bits
in any order and on any number of ranks; the rounding is far below that of float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fastssl_kernels.gather import all_reduce, group_name
from torch import Tensor

from .memory import blocks

FIXED = 2.0**36
"""Units of the sums: 2²⁶ rows of length 1 cannot overflow 64 bits."""


@torch.no_grad()
def spherical_kmeans(rows: Tensor, centroids: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Refine `centroids` over the rows of every rank.

    Args:
        rows: float32 `[n, D]` of unit length, this rank's; n may differ from rank to rank.
        centroids: float32 `[K, D]` of unit length, the same on every rank.
        iterations: at least 0.

    Returns:
        centroids `[K, D]`, the same on every rank, and int64 `[n]`, each row's cluster (of equal ones the first).
    """
    group = group_name(None)
    with torch.autocast(rows.device.type, enabled=False):
        for _ in range(iterations):
            assigned = nearest(rows, centroids)
            sums = torch.zeros(centroids.shape, dtype=torch.int64, device=rows.device)
            for part, clusters in zip(blocks(rows, rows.shape[1]), blocks(assigned, rows.shape[1]), strict=True):
                sums.index_add_(0, clusters, part.double().mul_(FIXED).round_().long())
            counts = torch.bincount(assigned, minlength=len(centroids))
            all_reduce(sums, "sum", group)
            all_reduce(counts, "sum", group)
            means = F.normalize(sums.double(), dim=1).float()
            # Rows that cancel leave no direction either.
            centroids = torch.where(((counts > 0) & means.any(1))[:, None], means, centroids)
        return centroids, nearest(rows, centroids)


def nearest(rows: Tensor, centroids: Tensor) -> Tensor:
    """int64 `[n]`: the centroid of greatest cosine, a block of rows at a time."""
    return torch.cat([(part @ centroids.T).argmax(1) for part in blocks(rows, len(centroids))])
