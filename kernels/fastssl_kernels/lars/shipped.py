"""The LARS kernels as `launch` launches them, for the ledger."""

from __future__ import annotations

from typing import Any

import torch

from ..configuration import Configuration
from ..ema.launch import kernel_type
from . import cost
from .kernel import measure_kernel, update_kernel
from .launch import BLOCK, PARTS, WARPS

_LOADS = ("LDG.E.128", "global_load_dwordx4")


def configurations(target: str) -> list[Configuration]:
    rows = [_measure(target, torch.float32), _measure(target, torch.float32, found=True), _update(torch.float32, "A")]
    if target.startswith("gfx"):
        # LLVM turns the masks of the other rows into loops in the loop: they compile, but no count is to be trusted.
        return rows
    return [
        *rows,
        _measure(target, torch.bfloat16),
        _update(torch.float32, "C"),
        _update(torch.float32, "A", averaged=True),
        _update(torch.float32, "A", averaged=True, copied=torch.bfloat16),
        _update(torch.bfloat16, "A"),
    ]


def _shared(dtype: torch.dtype, variant: str, found: bool) -> dict[str, Any]:
    return {
        "table_ptr": torch.int64,
        "options_ptr": torch.float32,
        "owner_ptr": torch.int32,
        "parts_ptr": torch.float64,
        "scale_ptr": None,
        "found_ptr": torch.float32 if found else None,
        "VARIANT": variant,
        "PARAMETER": kernel_type(dtype),
        "WIDE": kernel_type(torch.float32),
        "BLOCK": BLOCK,
        "VEC": 16 // dtype.itemsize,
    }


def _measure(target: str, dtype: torch.dtype, *, found: bool = False) -> Configuration:
    return Configuration(
        path="measure, checked" if found else "measure",
        kernel=measure_kernel,
        dtype=str(dtype).removeprefix("torch."),
        config=f"variant A, {BLOCK} elements, {WARPS} warps",
        arguments=_shared(dtype, "A", found),
        options={"num_warps": WARPS},
        unit="parameter",
        anchor=_LOADS,
        anchors_per_unit=2 * dtype.itemsize / 16,
        # LLVM takes two blocks a trip.
        units_per_trip=BLOCK * (2 if target.startswith("gfx") else 1),
        bytes=2.0 * dtype.itemsize,
    )


def _update(
    dtype: torch.dtype, variant: str, *, averaged: bool = False, copied: torch.dtype | None = None
) -> Configuration:
    parts = ["update"] + ["average"] * averaged + ["copy"] * (copied is not None)
    arguments = {
        **_shared(dtype, variant, found=True),
        "ema_momentum_ptr": torch.float64,
        "NESTEROV": False,
        "AVERAGED": averaged,
        "COPY_TYPE": None if copied is None else kernel_type(copied),
        "PARTS": PARTS,
    }
    moved = cost.parameter_bytes([1], dtype.itemsize, measured=[False], averaged=averaged)
    return Configuration(
        path=" + ".join(parts),
        kernel=update_kernel,
        dtype=str(dtype).removeprefix("torch."),
        config=f"variant {variant}, {BLOCK} elements, {WARPS} warps",
        arguments=arguments,
        options={"num_warps": WARPS},
        unit="parameter",
        anchor=_LOADS,
        anchors_per_unit=(4 if averaged else 3) * dtype.itemsize / 16,
        units_per_trip=BLOCK,
        bytes=float(moved + (copied.itemsize if copied is not None else 0)),
    )
