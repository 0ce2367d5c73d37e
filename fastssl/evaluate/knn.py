"""Weighted k-nearest-neighbour classification of frozen features (Wu et al. 2018, arXiv 1805.01978, section 3.4).

A test feature z looks up its k nearest training features by cosine similarity s_i and lets them vote,

    score(c) = Σ_i exp(s_i / τ) · [y_i = c]        over the k neighbours,

and the class of the greatest score is predicted. Features are normalised here; nothing is trained.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fastssl.errors import UserError
from fastssl.evaluate.features import check_features, check_labels

BLOCK_ROWS = 1024
BLOCK_COLUMNS = 4096
"""Similarities exist only for 1,024 test × 4,096 training features at a time: 16 MiB of float32, the fastest of the
sizes tried on two cores."""


def knn_predict(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.1,
    block_rows: int = BLOCK_ROWS,
    block_columns: int = BLOCK_COLUMNS,
) -> Tensor:
    """Predict the class of every row of `test_x` from its `k` nearest rows of `train_x`.

    Args:
        train_x: `[N, D]` features of any floating dtype; similarities are computed in float32 (float64 stays float64).
        train_y: `[N]` int64 class of each training feature, ≥ 0, any numbering.
        test_x: `[M, D]` features on the device of `train_x`.
        k: neighbours that vote; all N of them where the bank is smaller.
        temperature: τ > 0.
        block_rows, block_columns: greatest number of test and training features that are compared at once.

    Returns:
        `[M]` int64 classes. Equal scores go to the lowest class.

    Raises:
        UserError: shapes, labels, k or temperature make no sense, or a feature is not finite.
    """
    check_features(train_x, train_y, test_x)
    if k < 1:
        raise UserError(f"k must be at least 1, got {k}")
    if not temperature > 0:
        raise UserError(f"temperature must be > 0, got {temperature}")
    classes, compact_y = torch.unique(train_y, return_inverse=True)
    dtype = torch.float64 if train_x.dtype == torch.float64 else torch.float32
    bank = normalize(train_x.to(dtype), dim=1)
    predictions = [
        _vote(*_nearest(normalize(rows.to(dtype), dim=1), bank, k, block_columns), compact_y, len(classes), temperature)
        for rows in test_x.split(block_rows)
    ]
    return classes[torch.cat(predictions)]


def knn_accuracy(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.1,
    block_rows: int = BLOCK_ROWS,
    block_columns: int = BLOCK_COLUMNS,
) -> float:
    """Share of `test_x` whose class `knn_predict` gets right, 0 … 1. `test_y` is `[M]` int64, M ≥ 1."""
    check_labels("test", test_x, test_y)
    predictions = knn_predict(
        train_x,
        train_y,
        test_x,
        k=k,
        temperature=temperature,
        block_rows=block_rows,
        block_columns=block_columns,
    )
    return (predictions == test_y.to(predictions.device)).double().mean().item()


def _nearest(queries: Tensor, bank: Tensor, k: int, block_columns: int) -> tuple[Tensor, Tensor]:
    """`[b, min(k, N)]` greatest similarities in descending order and their rows of the bank."""
    best = queries.new_empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(bank), block_columns):
        columns = bank[start : start + block_columns]
        similarity, index = (queries @ columns.T).topk(min(k, len(columns)), dim=1)
        best, rows = torch.cat([best, similarity], 1), torch.cat([rows, index + start], 1)
        best, order = best.topk(min(k, best.shape[1]), dim=1)
        rows = rows.gather(1, order)
    return best, rows


def _vote(similarity: Tensor, rows: Tensor, labels: Tensor, classes: int, temperature: float) -> Tensor:
    # Weights relative to the nearest neighbour rank the classes alike and cannot overflow at a small temperature.
    weights = ((similarity.double() - similarity[:, :1].double()) / temperature).exp()
    scores = weights.new_zeros(len(rows), classes).scatter_add_(1, labels[rows], weights)
    return scores.argmax(dim=1)  # of equal scores the first
