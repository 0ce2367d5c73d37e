"""Turn a finished run directory into a record: command, environment, configuration, raw samples, table.

    python benchmarks/record.py RUN_DIR --what cifar10-simclr --data-name "CIFAR-10 (JPEG q75)"

writes benchmarks/records/<date>_<hardware>_<what>/. Paths of this machine are replaced by the data's name.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import shutil
from pathlib import Path

from fastssl import config as configuration

RECORDS = Path(__file__).parent / "records"
FIGURES = {
    "raw_pixel_knn": "raw-pixel kNN",
    "random_knn": "random-network kNN",
    "trained_knn": "trained kNN",
    "linear_probe": "linear probe",
}


def hardware(environment: dict) -> str:
    """A short name such as 2core-intel-xeon, or the GPU's."""
    gpus = environment.get("gpus") or []
    name = (
        str(gpus[0].get("name", "gpu")) if gpus else f"{environment['cpu']['cores']}core-{environment['cpu']['model']}"
    )
    name = re.sub(r"\((r|tm)\)|processor|cpu|@.*", "", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def record(run_dir: Path, what: str, data_name: str) -> Path:
    """Write the record of a finished run and return its folder."""
    summary = json.loads((run_dir / "summary.json").read_text())
    environment = json.loads((run_dir / "environment.json").read_text())
    config = configuration.load(run_dir / "config.yaml")
    out = RECORDS / f"{datetime.date.today():%Y-%m-%d}_{hardware(environment)}_{what}"
    out.mkdir(parents=True, exist_ok=True)
    names = [(str(path), name) for path, name in ((config.data, data_name), (config.run_dir, "RUN_DIR")) if path]

    def anonymous(text: str) -> str:
        for path, name in names:
            text = text.replace(path, name)
        return text

    for name in ("config.yaml", "environment.json", "metrics.jsonl", "summary.json"):
        (out / name).write_text(anonymous((run_dir / name).read_text()))
    shutil.copy(run_dir / "curves.png", out / "curves.png") if (run_dir / "curves.png").exists() else None
    (out / "README.md").write_text(page(what, data_name, anonymous(environment["command"]), config, summary, run_dir))
    return out


def page(what: str, data_name: str, command: str, config, summary: dict, run_dir: Path) -> str:
    """The record's own README."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    lines = [f"# {what}", "", f"Data: {data_name}.", "", "    " + command, "", "| figure | value |", "|---|---|"]
    lines += [f"| {title} | {summary[key]:.2%} |" for key, title in FIGURES.items() if key in summary]
    lines += [
        f"| images/s while training | {summary['images_per_second']:,.0f} |",
        f"| steps of {config.train.batch_size} images | {summary['steps']:,} |",
        f"| training time, evaluation excluded | {summary['training_seconds'] / 60:.1f} min |",
        f"| wall-clock time from start to the last evaluation | {summary['wall_seconds'] / 60:.1f} min |",
    ]
    measured = [row for row in rows if row["kind"] == "knn"]
    if measured:
        lines += ["", "| epoch | training minutes | wall-clock minutes | kNN |", "|---|---|---|---|"]
    for row in measured:
        timing = row["timing"]
        lines.append(
            f"| {row['epoch']:.0f} | {timing['time'] / 60:.1f} | {timing['wall'] / 60:.1f} | {row['knn']:.2%} |"
        )
    lines += [
        "",
        "`metrics.jsonl` holds every sample, `config.yaml` the configuration, `environment.json` the machine.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, help="a finished run")
    parser.add_argument("--what", required=True, help="short name of what was measured")
    parser.add_argument("--data-name", required=True, help="what to call the data instead of its path")
    options = parser.parse_args()
    print(f"wrote {record(options.run_dir, options.what, options.data_name)}")
