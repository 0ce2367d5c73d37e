"""The averaging kernel as `launch` launches it, for the ledger."""

from __future__ import annotations

import torch

from ..configuration import Configuration
from . import cost
from .kernel import ema_kernel
from .launch import BLOCK, CHUNK, WARPS, kernel_type


def configurations(target: str) -> list[Configuration]:
    rows = [_average(torch.float32, torch.bfloat16), _average(torch.bfloat16, torch.bfloat16)]
    # LLVM places a masked load of the float32 kernel so that it looks like a loop in the loop: no count to be trusted.
    return rows if target.startswith("gfx") else [_average(torch.float32, torch.float32), *rows]


def _average(target: torch.dtype, online: torch.dtype) -> Configuration:
    widest = max(target.itemsize, online.itemsize)
    names = [str(dtype).removeprefix("torch.") for dtype in (target, online)]
    return Configuration(
        path="average" if target == online else f"average of {names[1]}",
        kernel=ema_kernel,
        dtype=names[0],
        config=f"{BLOCK} elements, {WARPS} warps",
        arguments={
            "table_ptr": torch.int64,
            "owner_ptr": torch.int32,
            "momentum_ptr": torch.float64,
            "TARGET": kernel_type(target),
            "ONLINE": kernel_type(online),
            "WIDE": kernel_type(torch.float32),
            "CHUNK": CHUNK,
            "BLOCK": BLOCK,
            "VEC": 16 // widest,
        },
        options={"num_warps": WARPS},
        unit="parameter",
        # A store of the target is 128 bits in every row; loads of the online network may be narrower.
        anchor=("STG.E.128", "global_store_dwordx4"),
        anchors_per_unit=target.itemsize / 16,
        units_per_trip=BLOCK,
        bytes=float(cost.parameter_bytes([1], target.itemsize, online.itemsize)),
    )
