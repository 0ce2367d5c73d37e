"""The kernels as `launch` launches them, for the ledger: B = 4096, two views, or a queue of 65,536."""

from __future__ import annotations

from typing import Any

import torch

from ..configuration import Configuration
from ..rows_kernel import unit_rows_kernel, unit_rows_per_program
from ..tile import Tile, launch_options, piece_products
from .kernel import rectangle_kernel, triangle_kernel
from .kernel_gradient import gradient_kernel
from .launch_rows import LOG2E
from .tiles import tile_for

_BATCH, _QUEUE = 4096, 65536
_BF16, _FP16, _FP32 = torch.bfloat16, torch.float16, torch.float32
_EX2 = ("MUFU.EX2", "v_exp_f32")
# Instructions a logit (of the triangle: a computed logit, one for two entries), bf16 and D = 128, plain paths.
_BUDGETS = {"triangle": {"sm_90": 6.4}, "rectangle": {"sm_90": 4.8}, "gradient": {"sm_90": 7.4}}


def configurations(target: str) -> list[Configuration]:
    return [
        _triangle(target, _BF16, 128),
        _triangle(target, _BF16, 256),
        _triangle(target, _BF16, 512),
        _triangle(target, _FP16, 128),
        _triangle(target, _FP32, 128),
        _triangle(target, _FP32, 256),
        _rectangle(target, _BF16, 128),
        _rectangle(target, _BF16, 128, metrics=True),
        _rectangle(target, _BF16, 256, metrics=True),
        _rectangle(target, _BF16, 512, metrics=True),
        _rectangle(target, _FP32, 128),
        _rectangle(target, _FP32, 256),
        _rectangle(target, _BF16, 128, online=True),
        _rectangle(target, _BF16, 128, attract=True),
        _rectangle(target, _BF16, 256, attract=True),
        _rectangle(target, _BF16, 512, attract=True),
        _rectangle(target, _FP32, 128, attract=True),
        _rectangle(target, _FP32, 256, attract=True),
        _gradient(target, _BF16, 128),
        _gradient(target, _BF16, 256),
        _gradient(target, _BF16, 512),
        _gradient(target, _FP16, 128),
        _gradient(target, _FP32, 128),
        _gradient(target, _FP32, 256),
        *(_gradient(target, _BF16, width, few=True) for width in (128, 256, 512)),
        *(_gradient(target, _FP32, width, few=True) for width in (128, 256)),
        _gradient(target, _BF16, 128, online=True),
        _gradient(target, _BF16, 128, keys=True),
        _unit_rows(_BF16, 128),
    ]


def _shipped(
    path: str,
    kernel: Any,
    tile: Tile,
    target: str,
    products: torch.dtype,
    width: int,
    arguments: dict[str, Any],
    budget: str = "",
    gathered: int = 0,
    **work: Any,
) -> Configuration:
    constants, options = launch_options(tile, width, products, target)
    if constants["PRECISION"] == "tf32x3":
        work["flops"] *= 3
    return Configuration(
        path=path,
        kernel=kernel,
        dtype=str(products).removeprefix("torch."),
        config=f"D={width}, {tile.owner}×{tile.streamed}, {tile.warps} warps, {tile.stages} stages",
        arguments={**arguments, **constants},
        options=options,
        unit="logit",
        anchor=_EX2,
        units_per_trip=tile.owner * tile.streamed,
        pieces=piece_products(tile, width, target, gathered=gathered),
        budget=_BUDGETS[budget] if budget and (products, width) == (_BF16, 128) else {},
        **work,
    )


def _triangle(target: str, products: torch.dtype, width: int) -> Configuration:
    tile = tile_for("triangle", width, products, target)
    tiles = 2 * _BATCH // tile.owner
    arguments = {
        "z": products,
        "partial": _FP32,
        "c": LOG2E / 0.5,
        "batch": _BATCH,
        "per_view": tiles // 2,
        "tiles": tiles,
        "begin": 0,
        "end": tiles // 2 - 1,
        "chunk": tiles // 8,
        "VIEWS": 2,
        "BLOCK": tile.owner,
        "EVEN": True,
    }
    work: dict[str, Any] = {"flops": 2.0 * width, "exponentials": 1.0}
    return _shipped("forward-triangular", triangle_kernel, tile, target, products, width, arguments, "triangle", **work)


def _rectangle(
    target: str,
    products: torch.dtype,
    width: int,
    *,
    metrics: bool = False,
    online: bool = False,
    attract: bool = False,
) -> Configuration:
    tile = tile_for("attraction" if attract else "rectangle", width, products, target)
    columns = _QUEUE if attract else _BATCH
    arguments = {
        "rows": products,
        "columns": products,
        "partial": _FP32,
        "attracted": _FP32,
        "c": LOG2E / 0.1,
        "first": 0,
        "width": columns,
        "columns_padded": columns,
        "rows_padded": _BATCH,
        "SEGMENTS": 1 if attract else 2,
        "BM": tile.owner,
        "BN": tile.streamed,
        "EXCLUDE": not attract,
        "ONLINE": online,
        "METRICS": metrics,
        "ATTRACT": attract,
    }
    words = ["forward-rectangular"]
    words += [w for w, on in (("metrics", metrics), ("online", online), ("queue, with gradient", attract)) if on]
    work: dict[str, Any] = {"flops": 2.0 * width + 2.0 * tile.piece * attract, "exponentials": 1.0}
    budget = "rectangle" if len(words) == 1 else ""
    path = " ".join(words)
    return _shipped(path, rectangle_kernel, tile, target, products, width, arguments, budget, attract, **work)


def _gradient(
    target: str,
    products: torch.dtype,
    width: int,
    *,
    few: bool = False,
    online: bool = False,
    keys: bool = False,
) -> Configuration:
    tile = tile_for("gradient-few" if few else "gradient", width, products, target)
    pointers = ("partial", "factor", "partner_factor", "share", "grad", "own_weight", "other_weight")
    arguments = {
        **dict.fromkeys(("rows", "columns", "x", "partner", "out"), products),
        **dict.fromkeys(pointers, _FP32),
        "c": LOG2E / 0.1,
        "scale": 1.0 / _BATCH,
        "rescale": 0.5,
        "first": 0,
        "width": _BATCH,
        "columns_padded": _BATCH,
        "rows_padded": _BATCH,
        "batch": _BATCH,
        "SEGMENTS": 1 if keys else 2,
        "D": width,
        "BM": tile.owner,
        "BN": tile.streamed,
        "OWN": not keys,
        "ONLINE": online,
        "NORMALIZE": True,
        "FUSED": tile.piece == width,
    }
    words = [word for word, on in (("few rows", few), ("online", online), ("keys", keys)) if on]
    path = " ".join(["backward", *words])
    exponentials = 2.0 if online else 1.0
    work: dict[str, Any] = {
        "flops": 2.0 * (width + tile.piece),
        "exponentials": exponentials,
        "anchors_per_unit": exponentials,
    }
    budget = "gradient" if path == "backward" else ""
    return _shipped(path, gradient_kernel, tile, target, products, width, arguments, budget, 1, **work)


def _unit_rows(products: torch.dtype, width: int) -> Configuration:
    rows = unit_rows_per_program(width)
    arguments = {
        "x": products,
        "z": products,
        "factor": _FP32,
        "total": 2 * _BATCH,
        "batch": _BATCH,
        "padded": _BATCH,
        "D": width,
        "P": width,
        "NORMALIZE": True,
        "SMALLEST": 1e-12,
        "ROWS": rows,
    }
    return Configuration(
        path="normalise",
        kernel=unit_rows_kernel,
        dtype=str(products).removeprefix("torch."),
        config=f"D={width}, {rows} rows",
        arguments=arguments,
        options={"num_warps": 4},
        unit="element",
        units_per_program=rows * width,
        bytes=2.0 * products.itemsize + 4.0 / width,
    )
