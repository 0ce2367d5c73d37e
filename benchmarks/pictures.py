"""Pictures of the records, PNG and SVG, legible on light and on dark pages.

    python benchmarks/pictures.py                        # docs/images/, from the records that are checked in
    python benchmarks/pictures.py --step BENCH.json --out FOLDER    # also the step of a `fastssl bench METHOD --out`

roofline        kernels/ledger.json: what the compiled kernels let expect of an H100, marked as predicted; and what a
                record of `python benchmarks/kernels --device cuda` measured, where there is one
nt_xent         the newest record of nt_xent_memory.py: time and peak memory against the batch
views           the record of views a second
step            the parts of a training step, where `fastssl bench METHOD` left a record

A picture whose record is not there is named, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from roofline import PEAK, Point, measured, predicted, roof

from fastssl.bench.picture import draw_training
from fastssl.bench.result import Result
from fastssl.report.curves import INK, LINE, MUTED, for_dark_pages

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "benchmarks" / "records"
OTHER = "#d4820f"
"""Beside `LINE` for the other side of a comparison: of middle lightness too."""
FORMATS = ("png", "svg")


class Missing(Exception):
    """There is no record to draw; the message names it."""


def newest(records: Path, what: str) -> Path:
    """The folder of the newest record of `what`: names begin with their date."""
    found = sorted(records.glob(f"*_{what}"))
    if not found:
        raise Missing(f"no record named *_{what} in {records.name}/")
    return found[-1]


def read(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise Missing(f"the record {file.parent.name} has no {file.name}")
    return json.loads(file.read_text(encoding="utf-8"))


def sheet(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))


def save(figure: Figure, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastssl"}):
        for kind in FORMATS:
            metadata = {"Date": None} if kind == "svg" else {"Software": None}
            figure.savefig(folder / f"{name}.{kind}", transparent=True, dpi=160, metadata=metadata)
    file = folder / f"{name}.svg"
    file.write_text(for_dark_pages(file.read_text(encoding="utf-8")), encoding="utf-8")


def plain(axes: Axes, title: str) -> None:
    """Ink that stands out from white and from near-black, and no frame."""
    axes.set_title(title, loc="left", fontsize=10, color=INK, fontweight="bold")
    axes.tick_params(colors=INK, labelsize=8.5, which="both", length=0, pad=4)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)


# --------------------------------------------------------------------------------------------------------- roofline


def roofline(records: Path, folder: Path) -> None:
    figure = sheet(9, 5)
    axes = figure.add_subplot()
    span = [10**e for e in (-1, 0, 1, 2, 2.425, 3, 4, 5)]
    axes.loglog(span, [roof(x) for x in span], color=INK, linewidth=1.5)
    axes.annotate(
        f"H100: {PEAK.flops / 1e12:,.0f} TFLOP/s, {PEAK.bandwidth / 1e12:.1f} TB/s", (span[4], roof(span[4])), (-6, 8),
        textcoords="offset points", ha="right", fontsize=8.5, color=INK,
    )  # fmt: skip
    points = sorted(predicted(), key=lambda point: (point.intensity, point.name))
    for number, point in enumerate(points, 1):
        crowded = sum(abs(other.intensity / point.intensity - 1) < 0.05 for other in points) > 1
        _point(axes, point, number, (8, -4) if crowded else (-3, -14))
    timed = [point for path in sorted(records.glob("*_kernels/samples.json")) for point in measured(read(path))]
    for x, y in timed:
        axes.plot(x, y, "D", color=OTHER, markersize=5, label="measured on a GPU")
    axes.set_xlabel("FLOP a byte of device memory, least work (cost.py)", fontsize=9)
    axes.set_ylabel("FLOP/s", fontsize=9)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    legend = axes.legend(
        handles.values(), handles, loc="lower right", fontsize=8, frameon=False, labelcolor=INK, handlelength=1.2
    )
    legend.set_zorder(5)
    lacking = "" if timed else ": nothing here was timed"
    plain(axes, f"What the compiled kernels let expect of an H100, bf16, predicted{lacking}")
    save(figure, folder, "roofline")


def _point(axes: Axes, point: Point, number: int, beside: tuple[int, int]) -> None:
    """A range: from nothing overlapping to all of it."""
    axes.plot([point.intensity] * 2, [point.low, point.high], color=LINE, linewidth=2.5, solid_capstyle="round")
    axes.plot(
        point.intensity, point.low, "o", color=LINE, markersize=7, fillstyle="full", label=f"{number}  {point.name}"
    )
    axes.annotate(
        str(number), (point.intensity, point.low), beside, textcoords="offset points", fontsize=8.5, color=INK,
        fontweight="bold",
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- NT-Xent


def nt_xent(records: Path, folder: Path) -> None:
    path = newest(records, "nt-xent-memory")
    run, machine = read(path / "samples.json"), read(path / "environment.json")
    figure = sheet(9, 3.6)
    times, memory = figure.subplots(1, 2)
    sides = sorted({name for row in run["rows"] for name in row["seconds"]}, key=lambda name: "fastssl" not in name)
    for name, colour in zip(sides, (LINE, OTHER), strict=False):
        rows = [row for row in run["rows"] if name in row["seconds"]]
        batches = [row["batch"] for row in rows]
        seconds = [1e3 * median(row["seconds"][name]) for row in rows]
        peaks = [max(row["peak_mb"][name], 0.1) for row in rows]
        for axes, heights in ((times, seconds), (memory, peaks)):
            axes.plot(batches, heights, "o-", color=colour, linewidth=2, markersize=5)
            axes.annotate(
                f"{name.split()[0]} {heights[-1]:,.0f}", (batches[-1], heights[-1]), (-4, 7),
                textcoords="offset points", ha="right", fontsize=8.5, color=colour, fontweight="bold",
            )  # fmt: skip
    every = [row["batch"] for row in run["rows"]]
    for axes in (times, memory):
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(every, [f"{batch:,}" for batch in every])
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.minorticks_off()
        axes.set_xlabel("batch, images", fontsize=9)
        axes.margins(0.06, 0.15)
    for row in run["rows"]:
        for name, reason in row["left_out"].items():
            memory.text(
                0.99, 0.03, f"at {row['batch']:,} {name.split()[0]} {reason}", transform=memory.transAxes, ha="right",
                fontsize=8.5, color=INK,
            )  # fmt: skip
    threads = f"{run['threads']} thread{'s' if run['threads'] > 1 else ''}"
    where = machine["gpus"][0]["name"] if run["device"] == "cuda" else f"{_short(machine['cpu']['model'])}, {threads}"
    plain(times, f"NT-Xent, forward + backward, ms: {where}")
    plain(memory, f"peak memory of a call, MB: D = {run['width']}, fp32")
    save(figure, folder, "nt_xent")


def _short(model: str) -> str:
    return model.replace("(R)", "").replace(" Processor", "").strip()


# ------------------------------------------------------------------------------------------------------------ views


VIEWS = {"simclr": ("SimCLR, 2 × 224", 2), "swav": ("SwAV, 2 × 224 + 6 × 96", 8)}
"""Title, and views of an image."""
SUBJECTS = {
    "lightly": "lightly's transforms",
    "dali graph": "DALI's operators, one graph",
    "native": "fastssl, native",
    "floor": "floor: decode, one copy",
}


def views(records: Path, folder: Path) -> None:
    path = newest(records, "data-views")
    cpu = read(path / "environment.json")["cpu"]
    figure = sheet(9, 2.8)
    where = f"views / s, on {cpu['usable_cores']} cores of an {_short(cpu['model'])}: median, least to most"
    for axes, (name, (title, count)) in zip(figure.subplots(1, 2), VIEWS.items(), strict=True):
        samples = read(path / f"{name}.json")["images_per_second"]
        shown = {s: [count * speed for speed in samples[s]] for s in SUBJECTS if s in samples}
        for row, (subject, speeds) in enumerate(shown.items()):
            colour = {"native": LINE, "floor": MUTED}.get(subject, OTHER)
            axes.barh(row, median(speeds), color=colour, height=0.6)
            axes.plot([min(speeds), max(speeds)], [row, row], color=INK, linewidth=1.5)
            axes.annotate(
                f"{median(speeds):,.0f}", (max(speeds), row), (5, 0), textcoords="offset points", va="center",
                fontsize=8.5, color=INK,
            )  # fmt: skip
        axes.set_yticks(range(len(shown)), [SUBJECTS[subject] for subject in shown])
        axes.set_xlim(0, 1.2 * max(map(max, shown.values())))
        plain(axes, title)
        axes.spines["bottom"].set_visible(False)
        axes.set_xticks([])
    figure.supxlabel(where, fontsize=9, color=INK)
    save(figure, folder, "views")


# ------------------------------------------------------------------------------------------------------------- step


def step(file: Path, folder: Path) -> None:
    """Of the bench.json that `fastssl bench METHOD --out` writes."""
    found = read(file)
    folder.mkdir(parents=True, exist_ok=True)
    draw_training(Result(**found.get("result", found)), *(folder / f"step.{kind}" for kind in FORMATS))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the records")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="folder of the pictures")
    parser.add_argument("--step", type=Path, help="bench.json of a training step; the newest record's if there is one")
    options = parser.parse_args()
    pictures: dict[str, Callable[[Path, Path], None]] = {"roofline": roofline, "nt_xent": nt_xent, "views": views}
    failed = 0
    for name, draw in pictures.items():
        try:
            draw(options.records, options.out)
        except Missing as error:
            print(f"benchmarks/pictures.py: {name}: {error}", file=sys.stderr)
            failed = 1
    file = options.step or next(iter(sorted(options.records.glob("*_bench-*/bench.json"), reverse=True)), None)
    if file is None:
        print("step is not drawn: no record named *_bench-* has a bench.json, and --step names none")
        return failed
    try:
        step(file, options.out)
    except Missing as error:
        print(f"benchmarks/pictures.py: step: {error}", file=sys.stderr)
        failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
