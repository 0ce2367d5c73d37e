"""A 2-D picture of test embeddings before and after training, side by side: PCA to 50 dimensions, then t-SNE."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError

PALETTE = (
    *("#0538c1", "#efc905", "#9b0402", "#188eac", "#683673", "#4dcea5"),
    *("#cf82fd", "#c3c9ff", "#f52180", "#8f6f05", "#f1843d", "#8b4bfd"),
)
"""Twelve colours searched for the greatest least distance: 0.17 in OKLab, and still 0.11 as a protanope, deuteranope or
tritanope sees them (0.02 is just noticeable). The first n are far apart for every n; all show on white and on black."""
INK, FRAME = "#7d868f", "#8b949e"
POINTS = 2_000
"""More embeddings are thinned evenly to so many."""
COMPONENTS = 50


def embedding_picture(
    before: Any,
    after: Any,
    labels: Any,
    path: Path,
    *,
    classes: Sequence[str] | None = None,
    titles: tuple[str, str] = ("before training", "after training"),
    limit: int = POINTS,
    seed: int = 0,
) -> Path:
    """Draw the same images' embeddings by the untrained and by the trained network.

    Only the `len(PALETTE)` lowest classes are shown where there are more, so that every colour means one class.

    Args:
        before, after: `[N, D]` arrays or tensors, row i of both from image i; the widths may differ.
        labels: `[N]` classes; negative for none.
        path: the picture to write, .png or .svg, with a transparent background.
        classes: names by class; otherwise the numbers are the names.
        titles: over the two halves.
        limit: most points shown.
        seed: of t-SNE.

    Raises:
        UserError: fewer than three embeddings, shapes that do not match, or values that are not finite.
    """
    sides = [np.asarray(side, dtype=np.float32) for side in (before, after)]
    colors = np.asarray(labels, dtype=np.int64)
    _check(sides, colors)
    rows, shown = _chosen(colors, limit)
    if len(rows) < 3:
        raise UserError(f"an embedding picture needs at least 3 images, got {len(rows)}")
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    # The BLAS limit belongs to the process, so it is set and lifted once; that of OpenMP belongs to each thread.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(len(sides)) as pool:
        points = list(pool.map(lambda side: planar(side[rows], seed=seed), sides))
    names = [str(classes[c]) if classes is not None and 0 <= c < len(classes) else str(c) for c in shown]
    hidden = len(np.unique(colors)) - len(shown)
    return _draw(points, colors[rows], shown, names, titles, hidden, path)


def planar(x: NDArray[np.float32], *, seed: int = 0) -> NDArray[np.float32]:
    """`[N, D]` embeddings on a plane, `[N, 2]`: L2-normalised, PCA to 50 dimensions, t-SNE of perplexity ≤ 30."""
    # Here, not above: the import takes a second that a run which draws nothing need not wait for.
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    if x.std(axis=0).max() < 1e-6 or min(x.shape) < 2:
        # Collapsed to a point or a line: t-SNE would spread out rounding errors.
        return np.pad(x[:, :1] - x[:1, :1] if x.shape[1] == 1 else np.zeros((len(x), 1), np.float32), ((0, 0), (0, 1)))
    components = min(COMPONENTS, *x.shape)
    solver = "randomized" if components < min(x.shape) else "full"
    # One thread: 1,000 short parallel regions took 37 s instead of 7 where another process held a core, and the sums,
    # so the picture, would depend on the number of cores.
    with threadpool_limits(1, user_api="openmp"):
        z = PCA(components, svd_solver=solver, random_state=seed).fit_transform(x)
        perplexity = min(30.0, (len(z) - 1) / 3)
        model = TSNE(2, perplexity=perplexity, init="pca", learning_rate="auto", max_iter=750, random_state=seed)
        return model.fit_transform(z)


def _check(sides: Sequence[NDArray[np.float32]], labels: NDArray[np.int64]) -> None:
    for name, side in zip(("before", "after"), sides, strict=True):
        if side.ndim != 2 or side.shape[1] == 0 or labels.shape != side.shape[:1]:
            raise UserError(f"{name} must be embeddings [N, D] with N labels, got {side.shape} and {labels.shape}")
        if not np.isfinite(side).all():
            raise UserError(f"{name} has embeddings that are not finite: the backbone has diverged")


def _chosen(labels: NDArray[np.int64], limit: int) -> tuple[NDArray[np.intp], list[int]]:
    """Rows that are drawn, and the classes among them in ascending order."""
    known = np.unique(labels[labels >= 0])[: len(PALETTE)]
    rows = np.flatnonzero(np.isin(labels, known)) if len(known) else np.arange(len(labels))
    if len(rows) > limit:
        rows = rows[np.linspace(0, len(rows) - 1, limit).astype(int)]
    return rows, [int(c) for c in known if c in labels[rows]]


def _draw(
    points: Sequence[NDArray[np.float32]],
    labels: NDArray[np.int64],
    shown: Sequence[int],
    names: Sequence[str],
    titles: tuple[str, str],
    hidden: int,
    path: Path,
) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.2, 5.3 if shown else 4.9), layout="constrained")
    # Drawn in a shuffled order, so that no class lies on top of the others.
    order = np.random.default_rng(0).permutation(len(labels))
    colors = np.full(len(labels), INK, dtype=object)
    for place, label in enumerate(shown):
        colors[labels == label] = PALETTE[place]
    for place, (side, title) in enumerate(zip(points, titles, strict=True)):
        axes = figure.add_subplot(1, 2, place + 1)
        axes.scatter(
            side[order, 0], side[order, 1], c=list(colors[order]), s=17, linewidths=0.25, edgecolors="#80808080"
        )
        axes.set_title(title, loc="left", color=INK, fontsize=12, fontweight="bold")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.margins(0.04)
        for spine in axes.spines.values():
            spine.set(color=FRAME, alpha=0.5, linewidth=0.8)
    if shown:
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], marker="o", linestyle="", markersize=7, color=PALETTE[i]) for i in range(len(shown))]
        note = f"{len(shown)} of {len(shown) + hidden} classes" if hidden else None
        legend = figure.legend(
            handles, names, loc="outside lower center", ncols=min(6, len(shown)), frameon=False, fontsize=9.5,
            labelcolor=INK, handletextpad=0.2, columnspacing=1.6, title=note, title_fontsize=9,
        )  # fmt: skip
        legend.get_title().set_color(INK)
    figure.savefig(path, transparent=True, dpi=130)
    return path
