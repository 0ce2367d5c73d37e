"""Measure every operation of the kernel library beside its baselines, and write a record.

    python benchmarks/kernels [--minutes 10] [--device cpu|cuda] [--threads 2] [--out FOLDER]

Time, peak memory, error against float64 and share of the machine's floor, over sizes, back ends and dtypes. Nothing is
skipped in silence: the minutes decide how many rounds a case gets and whether its baseline is compiled. Each subject is
called three times whatever they say, which by itself takes two to three minutes on two cores.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1]))

import cases
import folder
from measure import Measurer
from part import installed
from rates import rates, spread
from record import RECORDS, hardware

from fastssl.report.environment import environment

PEERS = ("lightly", "timm")


def command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="about as long as all may take")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda where there is one")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch on the CPU")
    parser.add_argument("--sizes", choices=("full", "tiny"), default="full", help="tiny: to try the command")
    parser.add_argument("--out", type=Path, help="folder of the record; benchmarks/records/<date>_<hardware>_kernels")
    options = parser.parse_args()
    if options.minutes <= 0:
        parser.error(f"--minutes must be more than 0, got {options.minutes}")
    if options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    if options.device == "cuda" and not torch.cuda.is_available():
        print("--device cuda needs a CUDA device and torch finds none: use --device cpu", file=sys.stderr)
        raise SystemExit(2)
    return options


def main() -> None:
    options = command_line()
    start = time.monotonic()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    missing = [name for name in PEERS if not installed(name)]
    measured = rates(device, rounds=20 if options.sizes == "full" else 3)
    measurer = Measurer(device, measured)
    grid, entries = cases.grid(device, options.sizes), []
    for i, case in enumerate(grid):
        left = 60 * options.minutes - (time.monotonic() - start)
        entries.append(measurer.measure(case, max(left, 0) / (len(grid) - i)))
        took = entries[-1]["took_seconds"]
        print(f"{i + 1}/{len(grid)} {case.op}, {case.name}: {entries[-1]['rounds']} rounds, {took:.1f} s", flush=True)
    spent = (time.monotonic() - start) / 60
    run = {
        "command": "python benchmarks/kernels " + " ".join(words(sys.argv[1:])),
        "device": device.type,
        "threads": options.threads,
        "minutes": options.minutes,
        "minutes_spent": round(spent, 2),
        "rates": measured,
        "median_over_best": spread(measured),
        "not_installed": missing,
        "cases": entries,
    }
    found = environment()
    out = options.out or RECORDS / f"{datetime.date.today():%Y-%m-%d}_{hardware(found)}_kernels"
    folder.write(out, run, found)
    print(f"wrote {out} in {spent:.1f} minutes")


def words(arguments: list[str]) -> list[str]:
    """The command line without the folder, which is this machine's affair."""
    kept = [word for word in arguments if not word.startswith("--out=")]
    return [word for i, word in enumerate(kept) if word != "--out" and (i == 0 or kept[i - 1] != "--out")]


if __name__ == "__main__":
    main()
