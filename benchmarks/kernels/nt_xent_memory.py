"""Time and peak memory of NT-Xent, forward and backward, against the batch: ours beside lightly's.

    python benchmarks/kernels/nt_xent_memory.py [--batches 256 1024 4096 16384 65536] [--rounds 5] [--threads 2]
                                                [--device cpu] [--out FOLDER]

D = 128, fp32. lightly keeps matrices of (2·batch)² similarities: where those of a call would not fit into half of the
free memory it is left out, and the record says so. Peak memory is that of one call in a process of its own, beyond its
inputs. --out writes a record: samples.json, environment.json and README.md with the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from interleaved import interleaved
from nt_xent import OURS, peak_memory, subjects

from fastssl.report.environment import environment

WIDTH = 128
PEER = "lightly NTXentLoss fp32"
MATRICES = 4
"""Of similarities that lightly's loss has at once, forward and backward: 1,078 MB at batch 4,096."""


def needed_bytes(batch: int) -> int:
    """Of lightly's loss."""
    return MATRICES * 4 * (2 * batch) ** 2


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def both(options: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    """Ours and, where it is among `names`, lightly's."""
    return {name: call for name, call in subjects(options).items() if name in names}


def measure(options: argparse.Namespace, batch: int) -> dict[str, Any]:
    """One row of the record."""
    chosen = argparse.Namespace(**{**vars(options), "batch": batch, "width": WIDTH})
    left_out = {}
    if PEER not in subjects(chosen):
        left_out[PEER] = "lightly is not installed"
    elif 2 * needed_bytes(batch) > free_bytes(options.device):
        left_out[PEER] = f"would need {needed_bytes(batch) / 2**30:,.0f} GB, predicted as {MATRICES} matrices"
    names = [OURS] if left_out else [OURS, PEER]
    peaks = {name: round(peak_memory(chosen, name, partial(both, names=[name])), 2) for name in names}
    samples = interleaved(both(chosen, names), options.rounds, options.device, warmup=1)
    return {"batch": batch, "seconds": samples, "peak_mb": peaks, "left_out": left_out}


def page(run: dict[str, Any], found: dict[str, Any]) -> str:
    machine = (
        found["gpus"][0]["name"] if run["device"] == "cuda" else f"{found['cpu']['model']}, threads: {run['threads']}"
    )
    lines = ["# nt-xent-memory", ""]
    lines += [
        f"NT-Xent, forward and backward, D = {WIDTH}, fp32, on {machine}: medians of calls in turn, and peak memory"
    ]
    lines += ["of one call in a process of its own, beyond its inputs.", "", "    " + run["command"], ""]
    lines += ["| batch | ours, ms | lightly, ms | ratio | ours, MB | lightly, MB |", "|---|---|---|---|---|---|"]
    for row in run["rows"]:
        own = 1e3 * median(row["seconds"][OURS])
        cells = [f"{row['batch']:,}", f"{own:,.1f}"]
        if PEER in row["seconds"]:
            theirs = 1e3 * median(row["seconds"][PEER])
            cells += [f"{theirs:,.1f}", f"{theirs / own:.1f}", f"{row['peak_mb'][OURS]:,.0f}"]
            cells += [f"{row['peak_mb'][PEER]:,.0f}"]
        else:
            cells += ["–", "–", f"{row['peak_mb'][OURS]:,.0f}", row["left_out"][PEER]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", "`samples.json` holds every sample, `environment.json` the machine.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 1024, 4096, 16384, 65536], help="images")
    parser.add_argument("--rounds", type=int, default=5, help="calls of each")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch on the CPU")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="folder of the record")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for batch in options.batches:
        rows.append(measure(options, batch))
        times = ", ".join(f"{name} {1e3 * median(seconds):,.1f} ms" for name, seconds in rows[-1]["seconds"].items())
        print(f"{batch:,}: {times}; MB: {rows[-1]['peak_mb']}", flush=True)
    if options.out is None:
        return
    arguments = [word for word in sys.argv[1:] if word not in ("--out", str(options.out))]
    run = {
        "command": " ".join(["python benchmarks/kernels/nt_xent_memory.py", *arguments]),
        "device": options.device.type,
        "threads": options.threads,
        "width": WIDTH,
        "rows": rows,
    }
    found = environment()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "samples.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    (options.out / "environment.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (options.out / "README.md").write_text(page(run, found), encoding="utf-8")


if __name__ == "__main__":
    main()
