"""RELIC's kernels as `launch` launches them, for the ledger: RELICv2 with ten sampled negatives, RELIC with all."""

from __future__ import annotations

from typing import Any

import torch

from ..configuration import Configuration
from ..tile import Tile, launch_options, piece_products
from .kernel import pair_statistics_kernel, pair_sums_kernel
from .kernel_combine import combine_kernel
from .kernel_gradient import pair_gradient_kernel, view_gradient_kernel
from .launch import COMBINED, LOG2E, rows_per_program
from .pairs import padded_columns
from .tiles import tile_for

_BATCH, _SAMPLED = 4096, 10
_BF16, _FP16, _FP32 = torch.bfloat16, torch.float16, torch.float32
_EX2 = ("MUFU.EX2", "v_exp_f32")


def configurations(target: str) -> list[Configuration]:
    return [
        *(
            make(target, dtype, width, sampled=sampled)
            for make in (_sums, _gradient)
            for dtype, width, sampled in (
                *((_BF16, width, sampled) for width in (128, 256, 512) for sampled in (False, True)),
                *((_FP32, width, sampled) for width in (128, 256) for sampled in (False, True)),
            )
        ),
        _gradient(target, _FP16, 256, sampled=True),
        _sums(target, _BF16, 256, invariance=False),
        _sums(target, _BF16, 256, sampled=True, metrics=True),
        _sums(target, _BF16, 256, online=True),
        _gradient(target, _BF16, 256, invariance=False),
        _gradient(target, _BF16, 256, sampled=True, second=True),
        _statistics(_BF16, 256),
        _combine(),
        _view_gradient(_BF16, 256),
    ]


def _views(sampled: bool) -> dict[str, Any]:
    """RELICv2's crops, or RELIC's."""
    return {"LARGE": 4, "SMALL": 2, "SELF": True} if sampled else {"LARGE": 2, "SMALL": 0, "SELF": False}


def _common(tile: Tile, sampled: bool, columns: int, products: torch.dtype, online: bool) -> dict[str, Any]:
    return {
        "online": products,
        "columns": products,
        "ids": torch.int64 if sampled else products,
        "partial": _FP32,
        "c": LOG2E / 0.2,
        "first": 0,
        "width": _SAMPLED if sampled else _BATCH,
        "rows_padded": _BATCH,
        "columns_padded": columns,
        **_views(sampled),
        "BM": tile.owner,
        "BN": tile.streamed,
        "SAMPLED": sampled,
        "ONLINE": online,
    }


def _sums(
    target: str,
    products: torch.dtype,
    width: int,
    *,
    sampled: bool = False,
    invariance: bool = True,
    metrics: bool = False,
    online: bool = False,
) -> Configuration:
    columns = padded_columns(_SAMPLED) if sampled else _BATCH
    tile = tile_for("sums", width, products, target, columns)
    arguments = _common(tile, sampled, columns, products, online)
    arguments |= {"INVARIANCE": invariance, "EXPECTATION": metrics, "MAXIMUM": metrics}
    words = ["forward", "sampled" if sampled else "all negatives"]
    words += [w for w, on in (("metrics", metrics), ("online", online), ("no invariance", not invariance)) if on]
    # A tile is computed for two predictions at once.
    work = {"flops": 2.0 * width, "exponentials": 1.0, "units_per_trip": tile.owner * tile.streamed * (1 + invariance)}
    work["pieces"] = piece_products(tile, width, target, 1 + invariance)
    return _shipped(", ".join(words), pair_sums_kernel, tile, target, products, width, arguments, work)


def _gradient(
    target: str,
    products: torch.dtype,
    width: int,
    *,
    sampled: bool = False,
    invariance: bool = True,
    second: bool = False,
) -> Configuration:
    columns = padded_columns(_SAMPLED) if sampled else _BATCH
    tile = tile_for("gradient", width, products, target, columns)
    arguments = _common(tile, sampled, columns, products, False)
    arguments |= {
        "table": _FP32,
        "batch": _BATCH,
        "rescale": 1.5,
        "log": 0.3,
        "expectation": 0.3,
        "second": 0.3,
        "INVARIANCE": invariance,
        "SECOND": second,
    }
    words = ["backward", "sampled" if sampled else "all negatives"]
    words += [w for w, on in (("both sides", second), ("no invariance", not invariance)) if on]
    exponentials = 2.0 if second else 1.0
    work = {"flops": 2.0 * width * (1 + invariance) + 2.0 * tile.piece, "exponentials": exponentials}
    work |= {"anchors_per_unit": exponentials, "units_per_trip": tile.owner * tile.streamed}
    work["pieces"] = piece_products(tile, width, target, 1 + invariance, gathered=1)
    return _shipped(", ".join(words), pair_gradient_kernel, tile, target, products, width, arguments, work)


def _shipped(
    path: str,
    kernel: Any,
    tile: Tile,
    target: str,
    products: torch.dtype,
    width: int,
    arguments: dict[str, Any],
    work: dict[str, float],
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
        **work,  # type: ignore[arg-type]
    )


def _statistics(products: torch.dtype, width: int) -> Configuration:
    rows, views = rows_per_program(width), _views(True)
    arguments = {
        "partial": _FP32,
        "online": products,
        "x": products,
        "factor": _FP32,
        "target": products,
        "statistics": _FP32,
        "c": LOG2E / 0.2,
        "tie": 1e-4,
        "splits": 1,
        "batch": _BATCH,
        "rows_padded": _BATCH,
        "LARGE": views["LARGE"],
        "VIEWS": views["LARGE"] + views["SMALL"],
        "D": width,
        "P": width,
        "SMALLEST": 1e-12,
        "DIAGONAL": True,
        "INVARIANCE": True,
        "EXPECTATION": False,
        "METRICS": False,
        "ONLINE": False,
        "ROWS": rows,
    }
    # Every row once, and for each prediction the sums, and what is kept of it.
    moved = (views["LARGE"] + arguments["VIEWS"]) * products.itemsize + arguments["VIEWS"] * views["LARGE"] * 32 / width
    config = f"D={width}, {rows} rows"
    return _elementwise("statistics", pair_statistics_kernel, products, config, arguments, width, moved)


def _view_gradient(products: torch.dtype, width: int) -> Configuration:
    rows, views = rows_per_program(width), _views(True)
    arguments = {
        **dict.fromkeys(("x", "target", "out"), products),
        **dict.fromkeys(("partial", "factor", "coefficient", "grad"), _FP32),
        "scale": 1e-4,
        "rescale": 1.5,
        "splits": 1,
        "batch": _BATCH,
        "rows_padded": _BATCH,
        "LARGE": views["LARGE"],
        "VIEWS": views["LARGE"] + views["SMALL"],
        "D": width,
        "P": width,
        "SMALLEST": 1e-12,
        "ROWS": rows,
    }
    # Sums, row and gradient; the target rows serve all views.
    moved = 4 + 2 * products.itemsize + views["LARGE"] * products.itemsize / arguments["VIEWS"]
    config = f"D={width}, {rows} rows"
    return _elementwise("normalisation", view_gradient_kernel, products, config, arguments, width, moved)


def _combine() -> Configuration:
    views = _views(True)
    arguments = {
        **dict.fromkeys(("statistics", "table", "terms"), _FP32),
        "batch": _BATCH,
        "log": 0.3,
        "expectation": 0.3,
        "second": 0.3,
        "LARGE": views["LARGE"],
        "VIEWS": views["LARGE"] + views["SMALL"],
        "SELF": True,
        "INVARIANCE": True,
        "METRICS": False,
        "ROWS": COMBINED,
    }
    return _elementwise("combination", combine_kernel, _FP32, f"{COMBINED} images", arguments, 1, 11 * 4.0)


def _elementwise(
    path: str, kernel: Any, products: torch.dtype, config: str, arguments: dict[str, Any], width: int, moved: float
) -> Configuration:
    return Configuration(
        path=path,
        kernel=kernel,
        dtype=str(products).removeprefix("torch."),
        config=config,
        arguments=arguments,
        options={"num_warps": 4},
        unit="element",
        units_per_program=arguments["ROWS"] * width,
        bytes=moved,
    )
