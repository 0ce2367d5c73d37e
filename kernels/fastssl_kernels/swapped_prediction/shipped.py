"""SwAV's kernels as `launch` launches them, for the ledger: 2 + 6 crops of 4,096 images, 3,000 prototypes."""

from __future__ import annotations

from typing import Any

import torch

from ..configuration import Configuration
from ..tile import launch_options, padded_rows, piece_products
from .kernel import code_sums_kernel, finish_kernel, predict_kernel, prototype_kernel
from .kernel_scores import code_cross_entropy_backward_kernel, code_cross_entropy_kernel
from .launch import LOG2E, score_options
from .tiles import tile_for

_BATCH, _CROPS, _CODES, _PROTOTYPES = 4096, 8, 2, 3000
_ROWS, _COLUMNS = _CROPS * _BATCH, padded_rows(_PROTOTYPES)
_BF16, _FP32 = torch.bfloat16, torch.float32
_EX2 = ("MUFU.EX2", "v_exp_f32")
_C = LOG2E / 0.1


def configurations(target: str) -> list[Configuration]:
    return [
        _codes(target, _BF16, 128),
        _codes(target, _BF16, 256),
        _codes(target, _FP32, 128),
        _predict(target, _BF16, 128, gather=True),
        _predict(target, _BF16, 128, gather=False),
        _predict(target, _BF16, 256, gather=True),
        _predict(target, _FP32, 128, gather=True),
        _prototypes(target, _BF16, 128),
        _prototypes(target, _BF16, 256),
        _prototypes(target, _FP32, 128),
        _finish(128),
        *(_scores(target, dtype, backward=backward) for dtype in (_FP32, _BF16) for backward in (False, True)),
    ]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shipped(
    path: str,
    kernel: Any,
    name: str,
    target: str,
    products: torch.dtype,
    width: int,
    arguments: dict[str, Any],
    multiplied: int,
    **work: Any,
) -> Configuration:
    """multiplied: products of two numbers a unit, in multiples of the width."""
    tile = tile_for(name, width, products, target)
    constants, options = launch_options(tile, width, products, target)
    times = 3.0 if constants["PRECISION"] == "tf32x3" else 1.0
    if name != "codes":
        work["units_per_trip"] = tile.owner * tile.streamed
        work["pieces"] = piece_products(tile, width, target, gathered=multiplied - 1)
    return Configuration(
        path=path,
        kernel=kernel,
        dtype=_name(products),
        config=f"D={width}, {tile.owner}×{tile.streamed}, {tile.warps} warps, {tile.stages} stages",
        arguments={**arguments, "BM": tile.owner, "BN": tile.streamed, **constants},
        options=options,
        flops=2.0 * (width + (multiplied - 1) * tile.piece) * times,
        **work,
    )


def _codes(target: str, products: torch.dtype, width: int) -> Configuration:
    arguments = {
        "codes": _FP32,
        "columns": products,
        "sums": _FP32,
        "mass": _FP32,
        "rows": _CODES * _BATCH,
        "K": _PROTOTYPES,
    }
    tile = tile_for("codes", width, products, target)
    # The loop has no exponentials to count by; a program handles the tile of codes that a trip of the loop does.
    return _shipped(
        "sums of codes",
        code_sums_kernel,
        "codes",
        target,
        products,
        width,
        arguments,
        1,
        unit="code",
        units_per_program=tile.owner * tile.streamed,
        bytes=4.0,
    )


def _predict(target: str, products: torch.dtype, width: int, *, gather: bool) -> Configuration:
    arguments = {
        "rows": products,
        "columns": products,
        "lse": _FP32,
        "predicted": _FP32,
        "c": _C,
        "K": _PROTOTYPES,
        "GATHER": gather,
    }
    path = "loss and gradient of features" if gather else "loss"
    work = {"unit": "score", "anchor": _EX2, "exponentials": 1.0}
    return _shipped(path, predict_kernel, "predict", target, products, width, arguments, 1 + gather, **work)


def _prototypes(target: str, products: torch.dtype, width: int) -> Configuration:
    tile = tile_for("prototypes", width, products, target)
    arguments = {
        **dict.fromkeys(("columns", "rows", "others"), products),
        **dict.fromkeys(("shifted", "codes", "partial"), _FP32),
        "c": _C,
        "row_tiles": _ROWS // tile.streamed,
        "code_rows": _CODES * _BATCH,
        "code_tiles": _CODES * _BATCH // tile.streamed,
        "columns_padded": _COLUMNS,
        "K": _PROTOTYPES,
    }
    work = {"unit": "score", "anchor": _EX2, "exponentials": 1.0}
    return _shipped(
        "gradient of prototypes", prototype_kernel, "prototypes", target, products, width, arguments, 2, **work
    )


def _finish(width: int) -> Configuration:
    rows = max(1, 4096 // width)
    arguments = {
        "z": _BF16,
        **dict.fromkeys(("lse", "predicted", "sums", "mass", "losses", "gradient", "shifted"), _FP32),
        "crops": _CROPS,
        "batch": _BATCH,
        "temperature": 0.1,
        "scale": 1e-4,
        "rows_padded": _ROWS,
        "ASSIGN": 0 + (1 << 8),
        "CODES": _CODES,
        "D": width,
        "P": width,
        "GATHER": True,
        "ROWS": rows,
    }
    return Configuration(
        path="losses",
        kernel=finish_kernel,
        dtype="bfloat16",
        config=f"D={width}, {rows} rows, 4 warps",
        arguments=arguments,
        options={"num_warps": 4},
        unit="element",
        units_per_program=rows * width,
        bytes=2.0 + 4.0 + 4.0 * _CODES + 4.0,
    )


def _scores(target: str, dtype: torch.dtype, *, backward: bool) -> Configuration:
    options = score_options(_PROTOTYPES)
    warps = options.pop("num_warps")
    arguments: dict[str, Any] = {
        "scores": dtype,
        **dict.fromkeys(("target", "statistics"), _FP32),
        "rows": _BATCH,
        "c": _C,
        "K": _PROTOTYPES,
        **options,
    }
    arguments |= {"grad": _FP32, "result": dtype, "temperature": 0.1} if backward else {"losses": _FP32}
    exponentials = 1.0 if backward else 2.0
    # LLVM unrolls the loop over blocks, except the backward one of bfloat16.
    unrolled = target == "gfx942" and (dtype == _FP32 or not backward)
    blocks = -(-_PROTOTYPES // options["BLOCK"]) if unrolled else 1
    return Configuration(
        path="scores, backward" if backward else "scores, forward",
        kernel=code_cross_entropy_backward_kernel if backward else code_cross_entropy_kernel,
        dtype=_name(dtype),
        config=f"K={_PROTOTYPES}, {options['ROWS']}×{options['BLOCK']}, {warps} warps",
        arguments=arguments,
        options={"num_warps": warps},
        unit="score",
        anchor=_EX2,
        anchors_per_unit=exponentials,
        units_per_trip=options["ROWS"] * options["BLOCK"] * blocks,
        exponentials=exponentials,
        bytes=dtype.itemsize * (1.0 + backward) + 4.0,
    )
