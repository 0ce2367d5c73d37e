"""Device, threads and arithmetic of a run."""

from __future__ import annotations

import contextlib
import os
from typing import Literal

import torch

from ..config import TrainConfig
from ..errors import UserError

Precision = Literal["fp32", "bf16", "fp16"]


def resolve_device(name: str) -> torch.device:
    """auto: a GPU when there is one. Raises `UserError` for a GPU that is not there."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError(
            "--train.device cuda: no CUDA device is visible; use --train.device cpu, or see `fastssl doctor`"
        )
    return torch.device("cuda" if name != "cpu" and available else "cpu")


def resolve_precision(name: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> Precision:
    """auto: bf16 where the hardware multiplies it, fp32 elsewhere (emulated bf16 is several times slower)."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "fp32" if emulates("bf16", device) else "bf16"


def emulates(precision: str, device: torch.device) -> bool:
    """Whether `precision` is bf16 and the device a CPU without instructions for it."""
    if precision != "bf16" or device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return not (capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def view_form(device: torch.device, precision: str, *, channels_last: bool) -> tuple[torch.dtype, bool]:
    """dtype and channels-last of the views that a run trains on.

    On a GPU they are those of the networks, so that nothing converts them again; on the CPU float32 and contiguous.
    """
    if device.type != "cuda":
        return torch.float32, False
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32), channels_last


def set_threads(train: TrainConfig, processes: int = 1) -> int:
    """Set torch's arithmetic threads and return their number; 0 means this one's share of all cores that it may use.

    processes: those of this run on this machine.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = train.threads or max(1, cores // processes)
    torch.set_num_threads(threads)
    return threads


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Lower precision for the networks; losses leave it by themselves."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.float16 if precision == "fp16" else torch.bfloat16)
