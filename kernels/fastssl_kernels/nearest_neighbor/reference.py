"""Nearest neighbours written as their definition: every similarity in memory, any dtype.

    NN(z, Q) = the k rows q of Q with the largest ẑ·q,   ẑ = z / ‖z‖,   ties to the lower index

With unit rows in Q this is the nearest neighbour in cosine and in Euclidean distance. Source: NNCLR (Dwibedi et al.
2021, arXiv 2104.14548, equation 1).
"""

from __future__ import annotations

from torch import Tensor

from ..rows import unit_rows


def nearest_neighbor_reference(z: Tensor, queue: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """-> index [B, k] into `queue` [K, D], nearest first, and similarity [B, k], in the dtype of `z` [B, D]."""
    similarity = unit_rows(z)[0] @ queue.to(z.dtype).T
    ordered, index = similarity.sort(dim=1, descending=True, stable=True)
    return index[:, :k], ordered[:, :k]
