"""The software and hardware that a result was measured with, without a trace of who measured it or where."""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import fastssl

PACKAGES = ("torchvision", "triton", "dali", "numpy", "scikit-learn", "matplotlib", "lightly", "timm")
"""Their versions, with torch's, explain a result; "dali" stands for the nvidia-dali of any CUDA version."""

INSTRUCTION_SETS = (
    *("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16"),
    *("avx512_fp16", "amx_bf16", "amx_int8", "asimd", "asimdhp", "bf16", "i8mm", "sve", "sve2"),
)
"""Those that matter to convolutions, decoding and rendering, by their names in Linux' /proc/cpuinfo."""


def environment() -> dict[str, Any]:
    """Versions, processors and threads as plain JSON values; what is unknown or absent is None or an empty list.

    It holds no host name, no user name and no path. Memory is in GiB.
    """
    return {
        "fastssl": fastssl.__version__,
        "commit": commit(Path(fastssl.__file__).resolve().parent),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {"torch": str(torch.__version__), **{name: version(name) for name in PACKAGES}},
        "cpu": cpu(),
        "cuda": torch.version.cuda or getattr(torch.version, "hip", None),
        "driver": driver(),
        "gpus": gpus(),
    }


def version(name: str) -> str | None:
    """Version of an installed distribution, found without importing it; None if there is none."""
    try:
        if name == "dali":
            return max(d.version for d in metadata.distributions() if _is_dali(d.metadata["Name"]))
        return metadata.version(name)
    except (metadata.PackageNotFoundError, ValueError):
        return None


def _is_dali(distribution: str | None) -> bool:
    return bool(re.fullmatch(r"nvidia[-_]dali([-_](nightly[-_])?cuda\d+)?", distribution or "", re.IGNORECASE))


def commit(package: Path) -> str | None:
    """Git commit of the source tree whose folder `package` is, with "+" if files differ from it.

    None where the package is installed outside of a checkout of its own (an environment inside another repository does
    not count) or where there is no git.
    """
    top = _output("git", "-C", str(package), "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != package.parent:
        return None
    head = _output("git", "-C", top, "rev-parse", "--short=12", "HEAD")
    changed = _output("git", "-C", top, "status", "--porcelain", "--untracked-files=no")
    return head and head + ("+" if changed else "")


def cpu() -> dict[str, Any]:
    """Model, cores, instruction sets, memory, and the threads that torch uses in this process."""
    model, sets = parse_cpuinfo(_read("/proc/cpuinfo"))
    if platform.system() == "Darwin":
        model = _output("sysctl", "-n", "machdep.cpu.brand_string")
    return {
        "model": model or platform.processor() or None,
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "instruction_sets": sets,
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "memory_gib": memory_gib(),
    }


def parse_cpuinfo(text: str) -> tuple[str | None, list[str]]:
    """Model name and the known instruction sets of the first core in the text of /proc/cpuinfo (x86-64 and arm64)."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, separator, value = line.partition(":")
        if separator:
            fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return fields.get("model name"), [name for name in INSTRUCTION_SETS if name in flags]


def usable_cores() -> int:
    """Cores that this process may run on: its affinity mask and its control group's quota, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, quota_cores(_read("/sys/fs/cgroup/cpu.max")) or cores))


def quota_cores(cpu_max: str) -> int | None:
    """Cores' worth of time in a cgroup v2 `cpu.max` ("200000 100000" is 2), rounded up; None for no limit."""
    parts = cpu_max.split()
    if len(parts) != 2 or not all(part.isdigit() for part in parts) or int(parts[1]) == 0:
        return None
    return math.ceil(int(parts[0]) / int(parts[1]))


def memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # no such call on this system
        return None


def gpus() -> list[dict[str, Any]]:
    """Name, memory, architecture and multiprocessors of every visible CUDA (or ROCm) device."""
    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": properties.name,
                "memory_gib": round(properties.total_memory / 2**30, 1),
                "capability": f"{properties.major}.{properties.minor}",
                "multiprocessors": properties.multi_processor_count,
            }
        )
    return found


def driver() -> str | None:
    """Version of the NVIDIA driver."""
    lines = (_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "").splitlines()
    return lines[0].strip() if lines and re.fullmatch(r"[\d.]+", lines[0].strip()) else None


def _output(*command: str) -> str | None:
    """Standard output of a program, or None where it is absent, fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
