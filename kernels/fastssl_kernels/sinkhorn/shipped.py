"""Sinkhorn's kernels as `launch` launches them, for the ledger: SwAV's 4,096 rows and 3,000 prototypes."""

from __future__ import annotations

from typing import Any

import torch

from ..configuration import Configuration
from ..tile import launch_options, padded_rows, piece_products
from .kernel import first_kernel, iterate_kernel, reduce_kernel
from .kernel_features import log_sum_kernel, write_kernel
from .launch import LOG2E
from .tiles import REDUCE_BLOCK, REDUCE_SLOTS, passes_for, product_tile

_ROWS, _PROTOTYPES = 4096, 3000
_BF16, _FP32 = torch.bfloat16, torch.float32
_EX2 = ("MUFU.EX2", "v_exp_f32")
_C = LOG2E / 0.05


def configurations(target: str) -> list[Configuration]:
    return [
        *(_first(dtype) for dtype in (_FP32, _BF16)),
        *(_iterate(dtype, write=write) for dtype in (_FP32, _BF16) for write in (False, True)),
        _reduce(first=True),
        _reduce(first=False),
        _half(target, _BF16, 128, first=True),
        _half(target, _BF16, 128, first=False),
        _half(target, _BF16, 256, first=False),
        _half(target, _FP32, 128, first=False),
        _write(target, _BF16, 128),
        _write(target, _FP32, 128),
    ]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _first(dtype: torch.dtype) -> Configuration:
    passes = passes_for(_PROTOTYPES)
    arguments = {
        "scores": dtype,
        "partial": _FP32,
        "rows": _ROWS,
        "share": 64,
        "slot": 0,
        "problems": 2,
        "c": _C,
        "K": _PROTOTYPES,
        "ROWS": passes.first_rows,
        "BLOCK": passes.first_block,
    }
    # A tile also rescales its columns: one exponential for each, by rows a tile.
    per_score = 1.0 + 1.0 / passes.first_rows
    return Configuration(
        path="first pass",
        kernel=first_kernel,
        dtype=_name(dtype),
        config=f"K={_PROTOTYPES}, {passes.first_rows}×{passes.first_block}, {passes.first_warps} warps",
        arguments=arguments,
        options={"num_warps": passes.first_warps, "enable_fp_fusion": True},
        unit="score",
        anchor=_EX2,
        anchors_per_unit=per_score,
        units_per_trip=passes.first_rows * passes.first_block,
        exponentials=per_score,
        bytes=float(dtype.itemsize),
    )


def _iterate(dtype: torch.dtype, *, write: bool) -> Configuration:
    passes = passes_for(_PROTOTYPES)
    arguments: dict[str, Any] = {
        "scores": dtype,
        **dict.fromkeys(("base", "mass", "moved", "partial", "codes"), _FP32),
        "rows": _ROWS,
        "share": 64,
        "slot": 0,
        "problems": 2,
        "c": _C,
        "scale": 0.7,
        "K": _PROTOTYPES,
        "ROWS": passes.rows,
        "BLOCK": passes.chunk,
        "CHUNKS": passes.chunks,
        "WRITE": write,
    }
    padded = passes.chunk * passes.chunks
    return Configuration(
        path="codes" if write else "iteration",
        kernel=iterate_kernel,
        dtype=_name(dtype),
        config=f"K={_PROTOTYPES}, {passes.rows} rows of {passes.chunks}×{passes.chunk}, {passes.warps} warps",
        arguments=arguments,
        options={"num_warps": passes.warps, "enable_fp_fusion": True},
        unit="score",
        anchor=_EX2,
        # The last chunk is not full: its lanes work for nothing.
        anchors_per_unit=padded / _PROTOTYPES,
        units_per_trip=passes.rows * _PROTOTYPES,
        exponentials=padded / _PROTOTYPES,
        bytes=float(dtype.itemsize + 4 * write),
    )


def _reduce(*, first: bool) -> Configuration:
    slots = 264
    arguments = {
        **dict.fromkeys(("partial", "base", "mass"), _FP32),
        "slots": slots,
        "LENGTH": 2 * _PROTOTYPES,
        "padded": _PROTOTYPES,
        "real": _PROTOTYPES,
        "FIRST": first,
        "SLOTS": REDUCE_SLOTS,
        "BLOCK": REDUCE_BLOCK,
    }
    return Configuration(
        path="sums of the first pass" if first else "sums",
        kernel=reduce_kernel,
        dtype="float32",
        config=f"{REDUCE_SLOTS}×{REDUCE_BLOCK}, 4 warps",
        arguments=arguments,
        options={"num_warps": 4},
        unit="sum",
        units_per_program=REDUCE_SLOTS * REDUCE_BLOCK,
        bytes=8.0 if first else 4.0,
    )


def _products(target: str, products: torch.dtype, width: int) -> tuple[Any, dict[str, Any], dict[str, Any], float]:
    tile = product_tile(width, products, target)
    constants, options = launch_options(tile, width, products, target)
    times = 3.0 if constants["PRECISION"] == "tf32x3" else 1.0
    shared = {"rows": products, "columns": products, "BM": tile.owner, "BN": tile.streamed, **constants}
    shared |= dict.fromkeys(("own_potential", "other_potential"), _FP32)
    return tile, shared, options, 2.0 * width * times


def _half(target: str, products: torch.dtype, width: int, *, first: bool) -> Configuration:
    tile, shared, options, flops = _products(target, products, width)
    arguments = {
        **shared,
        "partial": _FP32,
        "c": _C,
        "slot": 0,
        "problems": 2,
        "rows_padded": _ROWS,
        "columns_padded": padded_rows(_PROTOTYPES),
        "rows_problem": _ROWS * width,
        "columns_problem": 0,
        "ONLINE": first,
    }
    return Configuration(
        path="half of the first iteration, from features" if first else "half an iteration, from features",
        kernel=log_sum_kernel,
        dtype=_name(products),
        config=f"D={width}, {tile.owner}×{tile.streamed}, {tile.warps} warps, {tile.stages} stages",
        arguments=arguments,
        options=options,
        unit="score",
        anchor=_EX2,
        units_per_trip=tile.owner * tile.streamed,
        pieces=piece_products(tile, width, target),
        flops=flops,
        exponentials=1.0,
    )


def _write(target: str, products: torch.dtype, width: int) -> Configuration:
    tile, shared, options, flops = _products(target, products, width)
    arguments = {
        **shared,
        "codes": _FP32,
        "c": _C,
        "real_rows": _ROWS,
        "rows_padded": _ROWS,
        "columns_padded": padded_rows(_PROTOTYPES),
        "columns_problem": 0,
        "K": _PROTOTYPES,
    }
    return Configuration(
        path="codes, from features",
        kernel=write_kernel,
        dtype=_name(products),
        config=f"D={width}, {tile.owner}×{tile.streamed}, {tile.warps} warps",
        arguments=arguments,
        options=options,
        unit="score",
        units_per_program=tile.owner * tile.streamed,
        flops=flops,
        exponentials=1.0,
        bytes=4.0,
    )
