"""Write the README's tables of measured figures from the raw samples of the records.

    python benchmarks/readme.py            # writes README.md
    python benchmarks/readme.py --check    # exit code 1 and one sentence where README.md is not what the records say

A figure is the median of a record's samples, a ratio one of medians. What stands outside the markers is not touched.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- {}: from the records, by benchmarks/readme.py -->", "<!-- end of {} -->"

RUNS = {
    "built-in shapes, `quick`": "2026-11-22_2core-intel-xeon_quick",
    "CIFAR-10 (JPEG q75), `cifar10-small`": "2026-11-22_2core-intel-xeon_cifar10-simclr",
}
"""Title of a row, and the record of a run."""
FIGURES = ("raw_pixel_knn", "random_knn", "trained_knn", "linear_probe", "images_per_second", "training_seconds")
"""Of a run's summary."""
ON_THE_WAY = 7.5
"""Minutes: where a run measured kNN before, and took longer, the row says what it was by then."""

KERNELS = "2026-12-01_2core-intel-xeon_kernels"
COMPARISONS: list[tuple[str, str, list[tuple[str, str, str]]]] = [
    (
        "NT-Xent, B = 4096, fp32 / bf16, forward + backward",
        "lightly 1.6",
        [
            (f"{KERNELS}/nt_xent", "fastssl fp32", "lightly NTXentLoss fp32"),
            (f"{KERNELS}/nt_xent", "fastssl bf16", "lightly NTXentLoss autocast bf16"),
        ],
    ),
    (
        "nearest neighbour in 98,304 × 256, bf16 / fp32 queue",
        "lightly",
        [
            (f"{KERNELS}/nearest_neighbor", "fastssl bf16 queue", "lightly NNMemoryBankModule"),
            (f"{KERNELS}/nearest_neighbor", "fastssl fp32 queue", "lightly NNMemoryBankModule"),
        ],
    ),
    ("Sinkhorn 4096 × 3000", "lightly", [(f"{KERNELS}/sinkhorn", "fastssl", "lightly")]),
    ("SwAV's loss with gradients", "lightly", [(f"{KERNELS}/swapped", "fastssl", "lightly")]),
    (
        "LARS as in SwAV (variant C), on ResNet-50",
        "lightly / timm",
        [(f"{KERNELS}/lars", "fastssl C", "lightly"), (f"{KERNELS}/lars", "fastssl C", "timm")],
    ),
    ("EMA on ResNet-50", "torch's foreach call", [(f"{KERNELS}/ema", "fastssl", "torch _foreach_lerp_")]),
]
"""Title, peer, and per ratio: the file of samples, our subject in it, theirs."""

VIEWS_OF = "2026-11-26_2core-intel-xeon_data-views"
VIEWS = {"SwAV's 2 × 224 + 6 × 96": "swav", "SimCLR's 2 × 224": "simclr"}
"""Title of a row, and the file of samples."""


TRAINING = "2026-11-26_2core-intel-xeon_training/samples"
PEERS = ("lightly", "lightly tuned")


METHODS = "2026-11-27_2core-amd-epyc_methods-cifar10/samples"
"""Of `benchmarks/methods/compare.py`."""


class Missing(Exception):
    """A record that the tables need is not there or lacks a figure; the message says which."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, say whether README.md is current")
    options = parser.parse_args()
    readme = ROOT / "README.md"
    try:
        before = readme.read_text(encoding="utf-8")
        after = filled(before, tables(ROOT / "benchmarks" / "records"))
    except Missing as error:
        print(f"benchmarks/readme.py: {error}", file=sys.stderr)
        return 1
    if options.check:
        if before != after:
            print("README.md is not what the records say: run `python benchmarks/readme.py`", file=sys.stderr)
        return int(before != after)
    readme.write_text(after, encoding="utf-8")
    return 0


def filled(text: str, found: dict[str, str]) -> str:
    """`text` with each table between its markers replaced."""
    for name, table in found.items():
        begin, end = BEGIN.format(name), END.format(name)
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise Missing(f"README.md must hold the markers of the table {name!r} once: {begin} and {end}")
        text = pattern.sub(lambda _, new=f"{begin}\n\n{table}\n\n{end}": new, text)
    return text


def tables(records: Path) -> dict[str, str]:
    """Every table in Markdown, by name. Raises `Missing`."""
    return {
        "runs": runs(records),
        "methods": methods(records),
        "kernels": kernels(records),
        "training": training(records),
        "views": views(records),
    }


def runs(records: Path) -> str:
    rows = ["| what | kNN: raw pixels → random network → trained | linear probe | images/s | training |"]
    for title, folder in RUNS.items():
        end = read(records / folder / "summary.json", *FIGURES)
        knn = " → ".join(
            f"{100 * end[key]:.1f}" if key != "trained_knn" else f"**{100 * end[key]:.1f} %**"
            for key in ("raw_pixel_knn", "random_knn", "trained_knn")
        )
        knn += earlier(records / folder / "metrics.jsonl", end["training_seconds"])
        minutes = f"{end['training_seconds'] / 60:.1f} min"
        rows.append(
            f"| {title} | {knn} | {100 * end['linear_probe']:.1f} % | {end['images_per_second']:,.0f} | {minutes} |"
        )
    return markdown(rows)


def earlier(file: Path, seconds: float) -> str:
    """What kNN was at the last measurement within `ON_THE_WAY` minutes of a run that took longer."""
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except OSError:
        raise Missing(f"the record {file.parent.name} has no {file.name}") from None
    measured = [(row["timing"]["time"] / 60, row["knn"]) for row in lines if row["kind"] == "knn"]
    before = [entry for entry in measured if entry[0] <= ON_THE_WAY]
    if seconds / 60 <= ON_THE_WAY or not before:
        return ""
    return f" ({100 * before[-1][1]:.1f} % after {before[-1][0]:.1f} min)"


def methods(records: Path) -> str:
    """Of each method, the best first: kNN accuracy and what it is above the untrained network's, time and images."""
    file = records / f"{METHODS}.json"
    samples = read(file, "methods", "images")
    rows = ["| method | kNN, % | above the random network | minutes | epochs |"]
    for name, found in sorted(samples["methods"].items(), key=lambda entry: -entry[1]["curve"][-1][1]):
        knn, passes = found["curve"][-1][1], found["images"] / samples["images"]
        gain = 100 * (knn - found["random_knn"])
        rows.append(f"| {name} | {100 * knn:.1f} | {gain:+.1f} | {found['minutes']:.1f} | {passes:.1f} |")
    return markdown(rows)


def kernels(records: Path) -> str:
    rows = ["| what | beside | faster |"]
    for title, peer, pairs in COMPARISONS:
        ratios = []
        for name, ours, theirs in pairs:
            file = records / f"{name}.json"
            samples = read(file, "seconds")["seconds"]
            ratios.append(of(samples, theirs, file) / of(samples, ours, file))
        # A ratio within its samples' spread of 1 deserves a second digit.
        rows.append(f"| {title} | {peer} | {' / '.join(f'{r:.2f} ×' if r < 1.1 else f'{r:.1f} ×' for r in ratios)} |")
    return markdown(rows)


def training(records: Path) -> str:
    file = records / f"{TRAINING}.json"
    samples = read(file, "images_per_second")["images_per_second"]
    ours = of(samples, "fastssl", file)
    figures = [f"**{ours:.1f}**"]
    figures += [f"{of(samples, peer, file):.1f} ({ours / of(samples, peer, file):.2f} ×)" for peer in PEERS]
    return markdown(["| fastssl | lightly | lightly, tuned by hand |", f"| {' | '.join(figures)} |"])


def views(records: Path) -> str:
    rows = ["| views | native renderer | lightly's transforms, two workers | DALI's operators in one graph | floor |"]
    for title, name in VIEWS.items():
        file = records / VIEWS_OF / f"{name}.json"
        samples = read(file, "images_per_second")["images_per_second"]
        ours, floor = of(samples, "native", file), of(samples, "floor", file)
        peers = [
            f"{of(samples, peer, file):.0f} ({ours / of(samples, peer, file):.1f} ×)"
            for peer in ("lightly", "dali graph")
        ]
        rows.append(
            f"| {title} | **{ours:.0f}** | {peers[0]} | {peers[1]} | {floor:.0f} ({ours / floor:.0%}) |".replace(
                "%", " %"
            )
        )
    return markdown(rows)


def read(file: Path, *keys: str) -> dict[str, Any]:
    """What a file of a record holds, `keys` among it."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise Missing(f"the record {file.parent.name} has no {file.name}") from None
    except json.JSONDecodeError as error:
        raise Missing(f"{file.name} of the record {file.parent.name} is not JSON: {error}") from None
    for key in keys:
        if key not in found:
            raise Missing(f"{file.name} of the record {file.parent.name} lacks {key!r}")
    return found


def of(samples: dict[str, list[float]], subject: str, file: Path) -> float:
    """The median of a subject's samples."""
    if not samples.get(subject):
        raise Missing(f"the record {file.parent.name} has no samples of {subject!r} in {file.name}")
    return median(samples[subject])


def markdown(rows: list[str]) -> str:
    columns = rows[0].count("|") - 1
    return "\n".join([rows[0], "|" + "---|" * columns, *rows[1:]])


if __name__ == "__main__":
    sys.exit(main())
