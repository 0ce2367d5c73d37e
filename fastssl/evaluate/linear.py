"""Linear probe: multinomial logistic regression on frozen features, its L2 strength chosen on held-out training data.

With standardised features x (zero mean and unit variance a dimension over the training set) it minimises

    L(W, b) = 1/N Σ_n −log softmax(Wᵀ x_n + b)[y_n] + λ/2 ‖W‖²

which is scikit-learn's `LogisticRegression` with C = 1 / (λ N). The loss is convex: the result depends on no learning
rate, batch size or augmentation, only on λ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fastssl.errors import UserError
from fastssl.evaluate.features import check_features, check_labels

GRID = (1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""Values of λ that are tried, from strong to weak: each fit starts from the one before."""
HELD_OUT = 0.2
"""Share of every class on which λ is chosen."""
BLOCK_ROWS = 16_384
"""Logits exist for so many samples at a time: 64 MiB of float32 for 1,000 classes."""


@dataclass(frozen=True)
class ProbeResult:
    """Accuracies are fractions 0 … 1 of the test samples."""

    top1: float
    top5: float
    """The true class is among the five likeliest (trivially 1 for five classes or fewer, if training had them all)."""
    regularization: float
    """The λ that was used."""
    held_out: dict[float, float]
    """Top-1 accuracy on the held-out part for every λ tried; empty if λ was given."""


def linear_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    regularization: float | None = None,
    grid: tuple[float, ...] = GRID,
    held_out: float = HELD_OUT,
    seed: int = 0,
) -> ProbeResult:
    """Accuracy of the best linear classifier of frozen features.

    λ is the value of `grid` with the greatest top-1 accuracy on a held-out part of every training class (the strongest
    of equals); the classifier is then fitted again to all training samples.

    Args:
        train_x, test_x: `[N, D]` and `[M, D]` features on one device, any floating dtype; the fit runs in float32
            (float64 stays float64).
        train_y, test_y: `[N]` and `[M]` int64 classes, any numbering. A class that only the test has counts as wrong.
        regularization: use this λ ≥ 0 and choose nothing.
        grid: values of λ, in descending order.
        held_out: share of each class held out, in (0, 1); at least one sample of every class that has two.
        seed: of the choice of held-out samples.

    Raises:
        UserError: shapes or labels make no sense, features are not finite, or no class can spare a sample.
    """
    check_features(train_x, train_y, test_x)
    check_labels("test", test_x, test_y)
    if regularization is not None and regularization < 0:
        raise UserError(f"regularization must be >= 0, got {regularization}")
    classes, y = torch.unique(train_y, return_inverse=True)
    x, test = _standardized(train_x, test_x)
    weights = x.new_zeros(x.shape[1] + 1, len(classes))
    accuracies: dict[float, float] = {}
    if regularization is None:
        regularization, weights, accuracies = _choose(x, y, weights, grid, _held_out(y, held_out, seed))
    weights = fit_logistic(x, y, weights, regularization)
    top = classes[_top(test, weights, min(5, len(classes)))]
    hits = top == test_y.to(top.device)[:, None]
    return ProbeResult(_mean(hits[:, 0]), _mean(hits.any(dim=1)), regularization, accuracies)


def fit_logistic(x: Tensor, y: Tensor, start: Tensor, regularization: float, *, tolerance: float = 1e-7) -> Tensor:
    """Minimise L(W, b) of this module by L-BFGS with a strong-Wolfe line search.

    Args:
        x: `[N, D]` float32 or float64 features.
        y: `[N]` int64 classes 0 … C - 1.
        start: `[D + 1, C]` first guess, W above b; its dtype and device are those of `x`.
        regularization: λ ≥ 0.
        tolerance: stop when a step changes L by less.

    Returns:
        `[D + 1, C]` W above b.
    """
    # The curvature of L along W[j] is at most x_j²/C + λ on average where training starts: optimising W / scale makes
    # it alike in all directions, which takes a third of the evaluations if the features are uncorrelated.
    curvature = torch.cat(
        [x.square().mean(dim=0) / start.shape[1] + regularization, x.new_full((1,), 1 / start.shape[1])]
    )
    scale = curvature.clamp_min(1e-12).rsqrt()[:, None]
    scaled = (start / scale).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [scaled],
        max_iter=1000,
        history_size=10,
        tolerance_grad=0.0,
        tolerance_change=tolerance,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimizer.zero_grad()
        total = 0.0
        for rows, labels in zip(x.split(BLOCK_ROWS), y.split(BLOCK_ROWS), strict=True):
            weights = scaled * scale
            loss = cross_entropy(torch.addmm(weights[-1], rows, weights[:-1]), labels, reduction="sum") / len(x)
            loss.backward()
            total += loss.item()
        penalty = 0.5 * regularization * (scaled * scale)[:-1].square().sum()
        penalty.backward()
        return total + penalty.item()

    with torch.enable_grad():
        optimizer.step(closure)
    return scaled.detach() * scale


def _standardized(train_x: Tensor, test_x: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets in units of the training set's standard deviations, on the principal axes of the training set.

    The rotation leaves L and its minimum alone (‖W‖ does not change) and makes the features uncorrelated.
    """
    dtype = torch.float64 if train_x.dtype == torch.float64 else torch.float32
    train, test = train_x.detach().to(dtype), test_x.detach().to(dtype)
    std, mean = torch.std_mean(train, dim=0, correction=0)
    std = torch.where(std > 1e-6 * mean.abs(), std, 1.0)  # a constant dimension carries nothing but rounding
    train, test = (train - mean) / std, (test - mean) / std
    axes = torch.linalg.eigh(train.T @ train / len(train)).eigenvectors
    return train @ axes, test @ axes


def _choose(
    x: Tensor, y: Tensor, weights: Tensor, grid: tuple[float, ...], held_out: Tensor
) -> tuple[float, Tensor, dict[float, float]]:
    accuracies: dict[float, float] = {}
    fits: dict[float, Tensor] = {}
    for value in grid:
        weights = fit_logistic(x[~held_out], y[~held_out], weights, value)
        fits[value] = weights
        accuracies[value] = _mean(_top(x[held_out], weights, 1)[:, 0] == y[held_out])
    best = max(accuracies, key=accuracies.__getitem__)  # the first of equals
    return best, fits[best], accuracies


def _held_out(y: Tensor, share: float, seed: int) -> Tensor:
    """`[N]` bool: `share` of every class, and at least one sample where a class has two."""
    counts = torch.bincount(y)
    quota = torch.where(counts > 1, (counts * share).round().long().clamp_min(1).minimum(counts - 1), 0)
    if not quota.any():
        raise UserError("train_y has one sample a class, none can be held out: pass regularization")
    shuffled = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed)).to(y.device)
    labels, order = y[shuffled].sort(stable=True)
    rank_in_class = torch.arange(len(y), device=y.device) - (counts.cumsum(0) - counts)[labels]
    mask = torch.zeros_like(y, dtype=torch.bool)
    mask[shuffled[order]] = rank_in_class < quota[labels]
    return mask


def _top(x: Tensor, weights: Tensor, k: int) -> Tensor:
    """`[N, k]` likeliest classes, first the likeliest."""
    return torch.cat(
        [torch.addmm(weights[-1], rows, weights[:-1]).topk(k, dim=1).indices for rows in x.split(BLOCK_ROWS)]
    )


def _mean(hits: Tensor) -> float:
    return hits.double().mean().item()
