"""Times several implementations of one thing in turn, so that a busy moment of the machine falls on all of them.

The order changes from round to round: whoever comes second may find shared data in the cache.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

Samples = dict[str, list[float]]


def interleaved(
    subjects: dict[str, Callable[[], object]], rounds: int, device: torch.device, warmup: int = 3
) -> Samples:
    """Seconds of every call: `rounds` rounds of one call each, after `warmup` rounds that do not count."""
    samples: Samples = {name: [] for name in subjects}
    generator = random.Random(0)
    for i in range(warmup + rounds):
        for name, call in generator.sample(sorted(subjects.items()), len(subjects)):
            seconds = _seconds(call, device)
            if i >= warmup:
                samples[name].append(seconds)
    return samples


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        # The level-2 cache is emptied, which also gives the host time to queue the call: no launch is waited for.
        _flush(device).zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@functools.cache
def _flush(device: torch.device) -> torch.Tensor:
    """More than any level-2 cache holds."""
    return torch.empty(2**28, dtype=torch.uint8, device=device)


def arguments(description: str | None) -> argparse.Namespace:
    """The command line that these benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of torch on the CPU")
    parser.add_argument("--rounds", type=int, default=30, help="calls of every implementation")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="write raw samples and environment to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.device = torch.device(options.device)
    return options


def report(samples: Samples, ours: str, options: argparse.Namespace, bytes_moved: dict[str, int] | None = None) -> None:
    """Print medians, their ratio to `ours`, and bandwidth where bytes are known; write the samples if asked to."""
    own = statistics.median(samples[ours])
    print(f"{'':34}{'median ms':>10}{'best ms':>10}{'ratio':>8}{'GB/s':>8}")
    for name, seconds in samples.items():
        median = statistics.median(seconds)
        moved = (bytes_moved or {}).get(name)
        speed = f"{moved / median / 1e9:8.1f}" if moved else ""
        print(f"{name:34}{median * 1e3:10.2f}{min(seconds) * 1e3:10.2f}{median / own:8.2f}{speed}")
    if options.out is not None:
        record = {"environment": _environment(options), "ours": ours, "seconds": samples}
        options.out.write_text(json.dumps(record, indent=1))


def _environment(options: argparse.Namespace) -> dict[str, str | int]:
    model = platform.processor()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        lines = cpuinfo.read_text().splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    gpu = torch.cuda.get_device_name() if options.device.type == "cuda" else "none"
    return {"torch": torch.__version__, "cpu": model, "gpu": gpu, "threads": options.threads, "rounds": options.rounds}
