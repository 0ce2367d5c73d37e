"""The kernels that draw views as `launch` launches them, for the ledger: views of 224 pixels, contiguous or not.

A program is counted whole, every loop once: an enlarged crop and all colour operations, saturation of both kinds though
a view has one; a blur of few taps. A crop that is reduced, and a blur of 11 taps on each side, run the loops over the
window again. The products are small, far from what binds, and left out.
"""

from __future__ import annotations

from typing import Any

import torch

from ..configuration import Configuration
from .kernel import resize_kernel
from .kernel_blur import blur_kernel
from .kernel_color import color_kernel
from .kernel_study import study_kernel
from .launch import (
    COLOR_BLOCK,
    STUDY_BLOCK,
    WARPS,
    block,
    blur_chunk,
    parts,
    product_constants,
    resize_chunk,
    work_dtype,
)
from .reference import gaussian_taps

_SIZE = 224
_KINDS = ((torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True))


def configurations(target: str) -> list[Configuration]:
    rows = []
    for dtype, last in _KINDS:
        rows.append(_resize(target, dtype, last, bicubic=True))
        rows.append(_color(dtype, last))
        rows.append(_blur(target, dtype, last, pil=False))
        rows.append(_study(dtype, last))
    rows.append(_resize(target, torch.bfloat16, False, bicubic=False))
    rows.append(_blur(target, torch.bfloat16, False, pil=True))
    return rows


def _shipped(
    path: str, kernel: Any, dtype: torch.dtype, last: bool, tile: str, units: int, moved: int, **arguments: Any
) -> Configuration:
    numbers = {f"{name}{i}": 0.5 for name in ("mean", "std") for i in range(3)}
    words = torch.int32 if kernel is study_kernel else torch.float32
    common = {"parameters": words, "out": dtype, "S": _SIZE, "CHANNELS_LAST": last, **numbers}
    return Configuration(
        path=path,
        kernel=kernel,
        dtype=str(dtype).removeprefix("torch."),
        config=f"{_SIZE} px{' channels-last' if last else ''}, {tile}, {WARPS} warps",
        arguments={**common, **arguments},
        options={"num_warps": WARPS, "num_stages": 1, "enable_fp_fusion": True},
        unit="pixel",
        units_per_program=units,
        bytes=float(moved),
        # Crops begin anywhere, and the pixels of a turned view are gathered.
        unaligned=kernel in (resize_kernel, study_kernel),
    )


def _products(dtype: torch.dtype, target: str, chunk: tuple[int, int]) -> dict[str, Any]:
    return {"BLOCK": block(_SIZE), "ROWS": chunk[0], "K": chunk[1], **product_constants(dtype, target)}


def _tile(chunk: tuple[int, int]) -> str:
    side = block(_SIZE)
    return f"{side}×{side} from {chunk[0]}×{chunk[1]}"


def _resize(target: str, dtype: torch.dtype, last: bool, *, bicubic: bool) -> Configuration:
    work, side = work_dtype(dtype), block(_SIZE)
    return _shipped(
        "resize-bicubic" if bicubic else "resize-bilinear",
        resize_kernel,
        dtype,
        last,
        _tile(resize_chunk(dtype)),
        side * side,
        3 + 3 * work.itemsize,
        pixels=torch.int64,
        image_bytes=0,
        image_width=0,
        work=work,
        partial=torch.float32,
        SUPPORT=2 if bicubic else 1,
        TABLE=True,
        BLUR=True,
        **_products(dtype, target, resize_chunk(dtype)),
    )


def _color(dtype: torch.dtype, last: bool) -> Configuration:
    work = work_dtype(dtype)
    return _shipped(
        "color",
        color_kernel,
        dtype,
        last,
        f"{COLOR_BLOCK} pixels",
        COLOR_BLOCK,
        3 * (work.itemsize + dtype.itemsize),
        partial=torch.float32,
        work=work,
        PARTS=parts(_SIZE),
        PARTS_POWER=1 << (parts(_SIZE) - 1).bit_length(),
        BLOCK=COLOR_BLOCK,
        BLUR=True,
    )


def _study(dtype: torch.dtype, last: bool) -> Configuration:
    work = work_dtype(dtype)
    return _shipped(
        "study",
        study_kernel,
        dtype,
        last,
        f"{STUDY_BLOCK} pixels",
        STUDY_BLOCK,
        3 * (work.itemsize + dtype.itemsize),
        source=work,
        BLOCK=STUDY_BLOCK,
    )


def _blur(target: str, dtype: torch.dtype, last: bool, *, pil: bool) -> Configuration:
    work, side = work_dtype(dtype), block(_SIZE)
    return _shipped(
        "blur-pil" if pil else "blur-gaussian",
        blur_kernel,
        dtype,
        last,
        _tile(blur_chunk(dtype)),
        side * side,
        3 * (work.itemsize + dtype.itemsize),
        source=work,
        planes=work,
        HALF=gaussian_taps(_SIZE),
        PIL=pil,
        LAST=True,
        **_products(dtype, target, blur_chunk(dtype)),
    )
