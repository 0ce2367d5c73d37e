"""What this machine and this installation can do, what would be faster, and what to install: `fastssl doctor`."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import torch

from .report.environment import environment, version

Status = Literal["ok", "note", "warn", "error"]
"""error keeps runs from starting; warn makes them slow or may end them; note is worth knowing."""

TRAINING = {
    "torchvision": "torchvision", "tyro": "tyro", "cattrs": "cattrs", "yaml": "pyyaml", "rich": "rich",
    "tensorboard": "tensorboard", "matplotlib": "matplotlib", "sklearn": "scikit-learn", "safetensors": "safetensors",
    "PIL": "pillow",
}  # fmt: skip
"""Modules that training needs, and the distributions that hold them."""

INSTALL = "python -m pip install -e '.[train]' in the checkout of fastssl"
DISK_GIB = 5.0
"""Less free space is worth a warning: a ResNet-50 checkpoint takes a quarter of a GiB, a packed ImageNet about 40."""


@dataclass(frozen=True)
class Row:
    section: str
    name: str
    value: str
    status: Status = "ok"
    advice: str = ""
    """What to do about it, one sentence; empty where nothing need be done."""


def diagnose() -> list[Row]:
    """Look at packages, devices, back ends, threads and disk. Needs nothing but torch and changes nothing."""
    record = environment()
    return [
        *_software(record),
        *_devices(record),
        *_back_ends(record),
        _apex(),
        *_resources(record),
    ]


def verdict(rows: Sequence[Row]) -> str:
    """One line: can a training run here, and on what."""
    errors = [row.name for row in rows if row.status == "error"]
    if errors:
        return f"Not ready to train: {', '.join(errors)}."
    gpus = [row.value.split(",")[0] for row in rows if row.section == "devices" and row.name.startswith("GPU ")]
    place = f"{len(gpus)} GPU{'s' if len(gpus) > 1 else ''} ({gpus[0]})" if gpus else "the CPU (no GPU is visible)"
    warnings = sum(row.status == "warn" for row in rows)
    return f"Ready to train on {place}" + (
        f", with {warnings} warning{'s' if warnings > 1 else ''}." if warnings else "."
    )


def print_report(file: TextIO | None = None) -> None:
    """Print the rows, the verdict and what to do: a coloured table on a terminal, plain text elsewhere."""
    out = sys.stdout if file is None else file
    rows = diagnose()
    if out.isatty() and importlib.util.find_spec("rich") is not None:
        _print_table(rows, out)
    else:
        _print_plain(rows, out)


# ----------------------------------------------------------------------------------------------------------- findings


def _software(record: dict[str, Any]) -> Iterator[Row]:
    commit = f" (commit {record['commit']})" if record["commit"] else ""
    yield Row("software", "fastssl", record["fastssl"] + commit)
    yield Row("software", "Python", f"{record['python']} on {record['platform']}")
    for name in ("torch", "torchvision", "numpy"):
        if record["packages"][name]:
            yield Row("software", name, record["packages"][name])
    absent = [distribution for module, distribution in TRAINING.items() if not _present(module)]
    if absent:
        yield Row("software", "packages", f"missing: {', '.join(absent)}", "error", f"Install them: {INSTALL}.")
    else:
        yield Row("software", "packages", "everything that training needs is installed")


def _devices(record: dict[str, Any]) -> Iterator[Row]:
    cpu = record["cpu"]
    sets = " ".join(name for name in cpu["instruction_sets"] if name not in ("sse4_2", "avx", "f16c", "fma"))
    cores = (
        f"{cpu['usable_cores']} of {cpu['cores']} cores"
        if cpu["usable_cores"] != cpu["cores"]
        else f"{cpu['cores']} cores"
    )
    yield Row("devices", "CPU", f"{cpu['model'] or 'unknown model'}, {cores}")
    yield Row("devices", "instructions", sets or "none beyond the baseline", "ok" if sets else "note")
    if cpu["memory_gib"]:
        yield Row("devices", "memory", f"{cpu['memory_gib']:.0f} GiB")
    for index, gpu in enumerate(record["gpus"]):
        native = tuple(int(part) for part in gpu["capability"].split(".")) >= (8, 0) or torch.version.hip is not None
        value = f"{gpu['name']}, {gpu['memory_gib']:.0f} GiB, capability {gpu['capability']}"
        advice = "" if native else "This GPU has no bf16 units: train with --train.precision fp16 or fp32."
        yield Row("devices", f"GPU {index}", value, "ok" if native else "warn", advice)
    toolkit = f"torch is built for {'ROCm' if torch.version.hip else 'CUDA'} {record['cuda']}" if record["cuda"] else ""
    if record["gpus"]:
        yield Row("devices", "driver", f"{record['driver'] or 'unknown'}, {toolkit}")
    elif record["driver"] and not record["cuda"]:
        advice = "Install a torch built for CUDA: the GPU's driver is here, but torch cannot use it."
        yield Row("devices", "GPU", "torch is built without CUDA", "warn", advice)
    elif record["driver"]:
        advice = "Update the driver, or unset CUDA_VISIBLE_DEVICES if it hides the GPU."
        yield Row("devices", "GPU", f"none visible, driver {record['driver']}, {toolkit}", "warn", advice)
    else:
        yield Row("devices", "GPU", "none", "note")


def _back_ends(record: dict[str, Any]) -> Iterator[Row]:
    gpu = bool(record["gpus"])
    yield _decoder(record["packages"]["dali"], gpu)
    yield _renderer(gpu)
    triton = record["packages"]["triton"]
    if gpu and triton:
        yield Row("back ends", "kernels", f"Triton {triton} on the GPU")
    elif gpu:
        yield Row("back ends", "kernels", "torch operations", "warn", "Install triton: the fused kernels need it.")
    else:
        note = f"Triton {triton} waits for a GPU" if triton else "Triton is not installed"
        yield Row("back ends", "kernels", f"torch operations on the CPU ({note})", "note")
    compiler = c_compiler()
    headers = Path(sysconfig.get_paths()["include"], "Python.h").exists()
    if compiler and headers:
        yield Row("back ends", "C compiler", compiler)
    else:
        lacking = "no C compiler" if not compiler else f"{compiler}, but no Python.h"
        advice = (
            "Install gcc and this Python's headers (python3-dev): Triton and torch.compile build launchers with them."
        )
        yield Row(
            "back ends", "C compiler", lacking, "error" if gpu and triton else "note", advice if gpu and triton else ""
        )


def _decoder(dali: str | None, gpu: bool) -> Row:
    other = "torchvision" if _present("torchvision") else "none"
    status: Status = "warn" if other == "torchvision" else "error"
    if dali is None:
        advice = "Install nvidia-dali-cuda130: it decodes faster, and on the GPU."
        if sys.platform != "linux":
            return Row(
                "back ends", "decoder", f"{other} (DALI exists for Linux only)", "note" if status == "warn" else "error"
            )
        return Row("back ends", "decoder", f"{other} (DALI is not installed)", status, advice)
    problem = dali_problem("mixed" if gpu else "cpu")
    if problem:
        advice = f"Repair DALI, or train with --loader.decoder torchvision. It said: {problem}"
        return Row("back ends", "decoder", f"DALI {dali} is installed but does not decode", status, advice)
    return Row("back ends", "decoder", f"DALI {dali} on the {'GPU' if gpu else 'CPU'} (decoded a test image)")


def _renderer(gpu: bool) -> Row:
    from .data import native, triton_render

    if gpu and triton_render.available():
        return Row("back ends", "renderer", "Triton on the GPU")
    if native.available():
        return Row("back ends", "renderer", "native on the CPU")
    advice = "Install fastssl again where a C compiler is found: views on the CPU are then drawn several times as fast."
    return Row("back ends", "renderer", "torch operations", "note" if gpu else "warn", "" if gpu else advice)


def dali_problem(device: Literal["cpu", "mixed"]) -> str | None:
    """Decode a small JPEG with DALI; None if the pixels come out, else the first line of what went wrong."""
    try:
        import numpy as np
        from nvidia.dali import Pipeline, fn
        from PIL import Image

        encoded = io.BytesIO()
        Image.new("RGB", (24, 16), (200, 100, 50)).save(encoded, "JPEG", quality=95)
        data = np.frombuffer(encoded.getvalue(), dtype=np.uint8)
        pipeline = Pipeline(batch_size=1, num_threads=1, device_id=0 if device == "mixed" else None)
        with pipeline:
            source = fn.external_source(source=lambda: [data], batch=True)
            pipeline.set_outputs(fn.decoders.image(source, device=device))
        pipeline.build()
        (output,) = pipeline.run()
        pixels = np.asarray((output.as_cpu() if device == "mixed" else output).at(0))
    except Exception as error:  # whatever a broken native library raises is the finding
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    if pixels.shape != (16, 24, 3) or abs(pixels.astype(int) - [200, 100, 50]).max() > 4:
        return f"wrong pixels, shape {pixels.shape}"
    return None


def c_compiler() -> str | None:
    """First line of the version of the C compiler that Triton would call: $CC, else gcc, clang or cc."""
    for name in filter(None, (os.environ.get("CC"), "gcc", "clang", "cc")):
        if shutil.which(name):
            try:
                done = subprocess.run([name, "--version"], capture_output=True, text=True, timeout=10, check=True)
            except (OSError, subprocess.SubprocessError):
                continue
            return (done.stdout.strip().splitlines() or [name])[0]
    return None


def _apex() -> Row:
    kind, detail = find_apex()
    if kind == "web toolkit":
        advice = "Remove it unless a web application here uses it: python -m pip uninstall apex."
        return Row("back ends", "NVIDIA apex", f"absent; {detail}", "note", advice)
    return Row("back ends", "NVIDIA apex", detail, "ok" if kind == "nvidia" else "note")


def find_apex() -> tuple[Literal["nvidia", "web toolkit", "other", "absent"], str]:
    """Which package answers to the name "apex", and what it is, found without importing any of it.

    NVIDIA's has a folder `multi_tensor_apply`; `amp_C` (multi-tensor operations) and `bnp` (NHWC batch norm) are
    compiled only on request. The package of that name on the package index adds logins to Pyramid, a web framework.
    """
    spec = _spec("apex")
    if spec is None:
        return "absent", "absent, not needed"
    places = [Path(place) for place in spec.submodule_search_locations or []]
    if any((place / "multi_tensor_apply").is_dir() for place in places):
        parts = {"amp_C": "multi-tensor operations", "bnp": "NHWC batch norm"}
        built = [title for name, title in parts.items() if _compiled(name, places)]
        return "nvidia", f"present, with {' and '.join(built)}" if built else "present, without its compiled parts"
    if any((place / "lib" / "libapex.py").exists() for place in places):
        known = version("apex")
        return "web toolkit", f"what is installed as apex{f' {known}' if known else ''} is an unrelated web toolkit"
    return "other", "absent; another package or folder answers to the name apex"


def _compiled(name: str, places: Sequence[Path]) -> bool:
    """A top-level extension module (until 2025), or a library of operators in or beside the package (since then)."""
    spec = _spec(name)
    if spec is not None and (spec.origin or "").endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES)):
        return True
    return any(
        next(folder.glob(f"_{name}*.so"), None) is not None
        for place in places
        for folder in (place / "_extensions", place, place.parent)
    )


def _resources(record: dict[str, Any]) -> Iterator[Row]:
    cpu = record["cpu"]
    threads, usable = cpu["threads"], cpu["usable_cores"]
    set_by = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ]
    value = f"torch uses {threads} for {usable} usable core{'s' if usable > 1 else ''}" + (
        f" ({', '.join(set_by)})" if set_by else ""
    )
    if threads > usable:
        advice = f"Set OMP_NUM_THREADS={usable}: more threads than cores wait for each other."
        yield Row("resources", "threads", value, "warn", advice)
    else:
        yield Row("resources", "threads", value, "ok" if threads == usable else "note")
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    low = free < DISK_GIB
    advice = "Free some space or give --run-dir on another disk: checkpoints and packed data go there."
    yield Row("resources", "disk", f"{free:.1f} GiB free here", "warn" if low else "ok", advice if low else "")


def _present(module: str) -> bool:
    return _spec(module) is not None


def _spec(module: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(module)
    except (ImportError, ValueError):  # a half-removed package, or a module without a spec
        return None


# ----------------------------------------------------------------------------------------------------------- printing


def _advice(rows: Sequence[Row]) -> list[str]:
    return [f"{row.name}: {row.advice}" for row in rows if row.advice]


def _print_plain(rows: Sequence[Row], out: TextIO) -> None:
    width = max(len(row.name) for row in rows)
    section = ""
    for row in rows:
        if row.section != section:
            print(f"{row.section}", file=out)
            section = row.section
        print(f"  {row.status:<5}  {row.name:<{width}}  {row.value}", file=out)
    print(f"\n{verdict(rows)}", file=out)
    for line in _advice(rows):
        print(f"  - {line}", file=out)


def _print_table(rows: Sequence[Row], out: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    marks = {"ok": ("✓", "green"), "note": ("·", "dim"), "warn": ("!", "bold yellow"), "error": ("✗", "bold red")}
    console = Console(file=out, highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 1))
    section = ""
    for row in rows:
        if row.section != section:
            table.add_row("", Text(f"{'' if not section else chr(10)}{row.section}", "bold"), "")
            section = row.section
        mark, style = marks[row.status]
        table.add_row(Text(mark, style), Text(row.name, "cyan"), Text(row.value, style if row.status != "ok" else ""))
    console.print(table)
    errors = any(row.status == "error" for row in rows)
    console.print(Text(f"\n{verdict(rows)}", "bold red" if errors else "bold green"))
    for line in _advice(rows):
        console.print(Text(f"  • {line}"))
