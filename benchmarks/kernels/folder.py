"""The record of a run: samples.json, environment.json, and README.md with the table."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

KERNELS = Path(__file__).parents[2] / "kernels"
Run = dict[str, Any]


def write(folder: Path, run: Run, environment: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "samples.json").write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps(environment, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(page(run, environment), encoding="utf-8")


def page(run: Run, environment: dict[str, Any]) -> str:
    gpus = environment["gpus"]
    machine = gpus[0]["name"] if run["device"] == "cuda" else f"{environment['cpu']['model']}, {run['threads']} threads"
    copied = run["rates"]["copy"]["per_second"]
    products = ", ".join(f"{n} {run['rates'][n]['per_second'] / 1e9:,.0f}" for n in run["rates"] if n != "copy")
    lines = [
        "# kernels",
        "",
        f"Operations beside their baselines, on {machine}, in {run['minutes_spent']:.1f} minutes.",
        "",
        "    " + run["command"],
        "",
        "Medians of rounds in which all subjects of a case take turns; “beside ours” is a subject's median over that",
        "of the case's first row. Error: relative norm against float64, the largest of result and gradients (nearest",
        "neighbours: cosine short of the best; views: levels in [0, 1]). Peak: memory of one call, results included.",
        "Of the floor: the least time for the bytes and FLOPs of the operation's `cost.py` over the median, at",
        f"{copied / 1e9:,.1f} GB/s of a copy and {products} GFLOP/s of matrix products (the best of this run).",
        "",
        "| operation | size | subject | dtype | rounds | median ms (least – most) | beside ours | peak MB | error | "
        "of the floor |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in run["cases"]:
        lines += rows(case)
    lines += left_out(run)
    if run["device"] != "cuda":
        lines += ["", *predicted()]
    lines += ["", "`samples.json` holds every sample, `environment.json` the machine.", ""]
    return "\n".join(lines)


def ratios(case: dict[str, Any]) -> dict[str, float]:
    """Each subject's median over ours."""
    own = median(case["subjects"][case["ours"]]["seconds"])
    return {name: median(subject["seconds"]) / own for name, subject in case["subjects"].items()}


def rows(case: dict[str, Any]) -> list[str]:
    found, beside = [], ratios(case)
    for name in sorted(case["subjects"], key=lambda name: name != case["ours"]):
        subject = case["subjects"][name]
        seconds = subject["seconds"]
        middle = median(seconds)
        times = f"{middle * 1e3:,.3g} ({min(seconds) * 1e3:,.3g} – {max(seconds) * 1e3:,.3g})"
        error = "–" if subject["error"] is None else f"{subject['error']:.1e}"
        found.append(
            f"| {case['op']} | {case['size']} | {name} | {subject['dtype']} | {case['rounds']} | {times} "
            f"| {beside[name]:.2f} | {subject['peak_bytes'] / 2**20:,.1f} | {error} "
            f"| {subject['floor']['seconds'] / middle:.1%} |"
        )
    return found


def left_out(run: Run) -> list[str]:
    """Every baseline that was not measured, and why."""
    lines = [
        f"* {case['op']}, {case['size']}: {name}: {reason}."
        for case in run["cases"]
        for name, reason in case["left_out"].items()
    ]
    lines += [f"* {name} is not installed." for name in run["not_installed"]]
    return ["", "Not measured:", "", *lines] if lines else []


def predicted() -> list[str]:
    """No GPU took part: what the compiler's output lets expect of one, by operation."""
    ledger = json.loads((KERNELS / "ledger.json").read_text(encoding="utf-8"))
    lines = [
        "No GPU took part. Predicted for an H100 from the kernels as triton "
        f"{ledger['compiler']['triton']} compiles them (each is in",
        "[LEDGER.md](../../../kernels/LEDGER.md)), as a share of the peak of tensor cores or memory: their clocks over",
        "the sum of all (nothing overlaps) and over the longest (all do), of the operation's 16-bit kernels.",
        "",
        "| operation | kernels | predicted share of the peak |",
        "|---|---|---|",
    ]
    found = [r for r in ledger["rows"] if r["target"] == "sm_90" and r["predicted_share"]]
    for op in sorted({row["op"] for row in found}):
        shares = [row["predicted_share"] for row in found if row["op"] == op and row["dtype"] != "float32"]
        low, high = min(s[0] for s in shares), max(s[1] for s in shares)
        lines.append(f"| {op} | {len(shares)} | {low:.0%} – {high:.0%} |")
    return lines
