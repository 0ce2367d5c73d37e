"""The parts of a step as one bar, and the speeds beside it: the picture of `fastssl bench METHOD`."""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ..report.curves import INK, LINE, MUTED
from .figures import NAMES, Figures, figures
from .result import Result
from .timeline import BACKWARD, CHECKS, FORWARD, LOSS, OPTIMIZER, TARGETS, VIEWS

COLOURS = {
    VIEWS: "#d4820f",
    FORWARD: LINE,
    TARGETS: "#1b9e9e",
    LOSS: "#c2549d",
    BACKWARD: "#7a6fd8",
    CHECKS: MUTED,
    OPTIMIZER: "#3a9e52",
}
"""Of middle lightness, which stand out from white and from near-black pages."""
LEAST_LABEL = 0.06
"""Narrower parts of the bar have no figure inside."""


def draw_training(result: Result, *paths: Path) -> None:
    """Draw into `paths` (.png, .svg), with a transparent ground."""
    found, setting = figures(result), result.setting
    figure = Figure(figsize=(9, 3.4), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.1))
    upper, lower = figure.subplots(2, 1, height_ratios=(1, 1.5))
    title = f"{setting['method']} ({setting['recipe']}), {setting['device']}, {setting['precision']}"
    _step(upper, found, f"one step of {setting['batch_size']:,} images · {title}")
    _speeds(lower, found)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastssl"}):
        for path in paths:
            figure.savefig(path, transparent=True, dpi=160)


def _step(axes: Axes, found: Figures, title: str) -> None:
    left, whole = 0.0, found.step.in_step
    for part in (part for part in found.parts if part.in_step >= 0.0005 * whole):
        width = 1e3 * part.in_step
        share = f"{NAMES[part.key].split(':')[0].split(',')[0]}  {part.share:.1%}"
        axes.barh(0, width, left=left, color=COLOURS[part.key], label=share)
        if part.share >= LEAST_LABEL:
            axes.text(
                left + width / 2, 0, f"{width:,.0f}", ha="center", va="center", color="white", fontsize=9, weight="bold"
            )
        left += width
    axes.set_xlim(0, max(left, 1e3 * whole))
    axes.set_title(title, loc="left", fontsize=10, color=INK, fontweight="bold")
    axes.xaxis.set_major_formatter("{x:,.0f} ms")
    axes.legend(
        loc="upper left", bbox_to_anchor=(0, -0.35), ncols=4, frameon=False, fontsize=8.5, labelcolor=INK,
        borderaxespad=0, handlelength=1, columnspacing=1.6, borderpad=0,
    )  # fmt: skip
    _plain(axes)
    axes.set_yticks([])


def _speeds(axes: Axes, found: Figures) -> None:
    speeds = {
        "supervised, one view": (found.supervised, MUTED, ""),
        "views alone": (found.views, COLOURS[VIEWS], ""),
        "model, synthetic views": (found.model, COLOURS[BACKWARD], f"   {found.roofline_model:.0%} of the roofline"),
        "full step": (found.full, LINE, f"   {found.roofline:.0%} of the roofline"),
    }
    for row, (speed, colour, note) in enumerate(speeds.values()):
        axes.barh(row, speed, color=colour, height=0.62)
        axes.annotate(
            f"{speed:,.1f}{note}",
            (speed, row),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=INK,
        )
    axes.set_yticks(range(len(speeds)), list(speeds))
    axes.set_title("images / s", loc="left", fontsize=10, color=INK, fontweight="bold")
    axes.set_xlim(0, 1.3 * max(speed for speed, _, _ in speeds.values()))
    _plain(axes)
    axes.set_xticks([])


def _plain(axes: Axes) -> None:
    axes.tick_params(colors=INK, labelsize=8.5, length=0, pad=4)
    for spine in axes.spines.values():
        spine.set_visible(False)
