"""BYOL's kernels as `launch` launches them, for the ledger: 4,096 rows of width 256, the method's projection."""

from __future__ import annotations

import torch
import triton.language as tl

from ..configuration import Configuration
from . import cost
from .kernel import byol_bwd_kernel, byol_fwd_kernel
from .launch import WARPS, blocks
from .op import SMALLEST_SQUARE

_ROWS, _WIDTH = 4096, 256


def configurations(target: str) -> list[Configuration]:
    return [
        _shipped(dtype, backward=backward) for dtype in (torch.float32, torch.bfloat16) for backward in (False, True)
    ]


def _shipped(dtype: torch.dtype, *, backward: bool) -> Configuration:
    per_program, block = blocks(_WIDTH)
    arguments = {
        "prediction": dtype,
        "target": dtype,
        "statistics": torch.float32,
        "rows": _ROWS,
        "WIDTH": _WIDTH,
        "WIDE": tl.float32,
        "ROWS": per_program,
        "BLOCK": block,
    }
    if backward:
        arguments |= {"grad": torch.float32, "result": dtype}
        moved = cost.backward_bytes(_ROWS, _WIDTH, dtype.itemsize)
    else:
        arguments |= {"losses": torch.float32, "SMALLEST_SQUARE": SMALLEST_SQUARE}
        moved = cost.forward_bytes(_ROWS, _WIDTH, dtype.itemsize)
    return Configuration(
        path="backward" if backward else "forward",
        kernel=byol_bwd_kernel if backward else byol_fwd_kernel,
        dtype=str(dtype).removeprefix("torch."),
        config=f"D={_WIDTH}, {per_program} rows, {WARPS} warps",
        arguments=arguments,
        options={"num_warps": WARPS},
        unit="element",
        units_per_program=per_program * _WIDTH,
        bytes=moved / (_ROWS * _WIDTH),
    )
