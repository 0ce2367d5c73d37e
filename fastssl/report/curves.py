"""Curves of a run from its metrics.jsonl, legible on light and on dark pages."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

INK, MUTED, LINE = "#6e7781", "#8b949e", "#2f81d7"
"""Middle grays and a middle blue: contrast of at least 3 on white and on near-black."""
DARK_PAGE = {INK: "#adbac7", LINE: "#539bf5"}
"""What an SVG takes instead where the reader's page is dark."""
BINS = 150
"""A curve of more points is drawn as the mean and the range of so many runs of them."""

Row = Mapping[str, Any]
References = Mapping[str, Sequence[tuple[str, float]]]
"""Horizontal lines by metric: a name and a height each."""


@dataclass(frozen=True)
class Panel:
    metric: str
    title: str
    headline: str = "{last:.3g}"
    """What stands over the panel's right end, of `last`, `peak` and `median`."""
    share: bool = False
    """The axis is in percent."""
    from_zero: bool = False


PANELS = (
    Panel("loss", "loss"),
    Panel("knn", "kNN accuracy", "{last:.1%}", share=True),
    Panel("lr", "learning rate", "peak {peak:.3g}", from_zero=True),
    Panel("accuracy", "contrastive accuracy", "{last:.1%}", share=True),
    Panel("entropy", "contrastive entropy"),
    Panel("embedding_std", "std of embeddings", from_zero=True),
    Panel("rankme", "effective rank (RankMe)", from_zero=True),
    Panel("images_per_second", "images / s", "median {median:,.0f}", from_zero=True),
    Panel("data_wait", "waiting for data", "median {median:.1%}", share=True, from_zero=True),
)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl in the order of the file, `timing` merged into each.

    Lines that are not whole JSON objects are left out: a killed process leaves one, at the end or, after a resume,
    inside the file. Raises FileNotFoundError where there is no file.
    """
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            timing = row.pop("timing", None)
            rows.append({**row, **(timing if isinstance(timing, dict) else {})})
    return rows


def draw_curves(rows: Sequence[Row], path: Path, references: References | None = None) -> Path:
    """Draw every known metric that `rows` have into `path` (.png or .svg). Raises ValueError where they have none."""
    figure = _figure(rows, references or {})
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(path, transparent=True, dpi=160)
    return path


def curves_svg(rows: Sequence[Row], references: References | None = None) -> str:
    """The curves as an SVG element for an HTML page, with the colours of the reader's light or dark scheme."""
    figure, out = _figure(rows, references or {}), io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastssl"}):
        figure.savefig(
            out, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    svg = out.getvalue()
    return for_dark_pages(svg[svg.index("<svg") :])


def for_dark_pages(svg: str) -> str:
    """The SVG with the colours of `DARK_PAGE` where the reader's scheme is dark."""
    dark = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{color}!important}}'
        for light, color in DARK_PAGE.items()
        for kind in ("fill", "stroke")
    )
    start = svg.index(">", svg.index("<svg")) + 1
    return f"{svg[:start]}<style>@media (prefers-color-scheme:dark){{{dark}}}</style>{svg[start:]}"


def series(rows: Sequence[Row], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """float64 `[n]` epochs (steps where rows have no epoch) and `[n]` finite values of `metric`."""
    points = [
        (float(row.get("epoch", row.get("step", math.nan))), float(row[metric]))
        for row in rows
        if isinstance(row.get(metric), int | float) and not isinstance(row.get(metric), bool)
    ]
    table = np.array(points, dtype=np.float64).reshape(-1, 2)
    table = table[np.isfinite(table).all(axis=1)]
    return table[:, 0], table[:, 1]


def _figure(rows: Sequence[Row], references: References) -> Figure:
    drawn = [(panel, *series(rows, panel.metric)) for panel in PANELS]
    drawn = [entry for entry in drawn if len(entry[1])]
    if not drawn:
        raise ValueError("rows hold no metric that can be drawn")
    columns = min(3, len(drawn))
    lines = math.ceil(len(drawn) / columns)
    figure = Figure(figsize=(3.6 * columns, 2.3 * lines), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    unit = "epoch" if any("epoch" in row for row in rows) else "step"
    left = min(x.min() for _, x, _ in drawn)
    right = max(x.max() for _, x, _ in drawn)
    for place, (panel, x, y) in enumerate(drawn):
        axes = figure.add_subplot(lines, columns, place + 1)
        _draw(axes, panel, x, y, references.get(panel.metric, ()))
        axes.set_xlim(min(left, 0.0), right if right > min(left, 0.0) else right + 1)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=right >= 2))
        if place + columns >= len(drawn):
            axes.set_xlabel(unit, color=INK, fontsize=8.5)
    return figure


def _draw(axes: Axes, panel: Panel, x: np.ndarray, y: np.ndarray, references: Sequence[tuple[str, float]]) -> None:
    headline = panel.headline.format(last=y[-1], peak=y.max(), median=np.median(y))
    axes.set_title(panel.title, loc="left", fontsize=10, color=INK, fontweight="bold")
    axes.set_title(headline, loc="right", fontsize=10, color=LINE, fontweight="bold")
    heights = [y.min(), y.max(), *(height for _, height in references)]
    if len(x) > BINS:
        x, y, low, high = _binned(x, y)
        axes.fill_between(x, low, high, color=LINE, alpha=0.25, linewidth=0)
    axes.plot(x, y, color=LINE, linewidth=1.5, marker="o" if len(x) <= 20 else None, markersize=3.5, clip_on=False)
    for place, (name, height) in enumerate(sorted(references, key=lambda reference: -reference[1])):
        # The name of the lowest of several lines stands below it: two lines may be close.
        below = place > 0 and place == len(references) - 1
        axes.axhline(height, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.annotate(
            name, (1, height), (0, -2 if below else 2), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="right", va="top" if below else "bottom", fontsize=7.5, color=INK,
        )  # fmt: skip
    axes.set_ylim(*_limits(heights, panel.from_zero))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    if panel.share:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.tick_params(colors=INK, labelsize=8, length=0, pad=4)
    axes.yaxis.get_offset_text().set(color=INK, fontsize=8)
    axes.grid(axis="y", color=MUTED, alpha=0.25, linewidth=0.8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=MUTED, alpha=0.6)


def _limits(heights: Sequence[float], from_zero: bool) -> tuple[float, float]:
    """Room for all heights and, around them, for the name of a reference line."""
    low, high = min(heights), max(heights)
    low = min(low, 0.0) if from_zero else low
    room = (high - low) or abs(high) or 1.0
    return (low if from_zero else low - 0.12 * room), high + 0.16 * room


def _binned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean position, and mean, least and greatest value of `BINS` runs of consecutive points."""
    starts = np.linspace(0, len(x), BINS, endpoint=False).astype(int)
    counts = np.diff(np.append(starts, len(x)))
    mean_x, mean_y = np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts
    return mean_x, mean_y, np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)
