"""The kernels as `launch` launches them, for the ledger: 4,096 rows in NNCLR's queue of 98,304."""

from __future__ import annotations

from typing import Any

import torch

from ..configuration import Configuration
from ..tile import Tile, launch_options, piece_products
from . import cost
from .kernel import pick_kernel, scan_kernel
from .launch import PICK_WARPS, pick_constants, splits_for
from .tiles import tile_for

_BATCH, _QUEUE, _PROCESSORS = 4096, 98304, 132
_BF16, _FP16, _FP32 = torch.bfloat16, torch.float16, torch.float32
# Instructions a score of the plain scan, bf16 and D = 256.
_BUDGET = {"sm_90": 4.2}
# What a thread does once a number, or a pair of them, in the second pass.
_MULTIPLY_ADD: dict[str, dict[str, Any]] = {
    "sm_80": {"anchor": ("FFMA",)},
    "sm_90": {"anchor": ("FFMA",)},
    "sm_100": {"anchor": ("FFMA2",), "anchors_per_unit": 0.5},
}


def configurations(target: str) -> list[Configuration]:
    return [
        _scan(target, _BF16, 256),
        _scan(target, _BF16, 256, every=True),
        _scan(target, _BF16, 128),
        _scan(target, _BF16, 512),
        _scan(target, _FP16, 256),
        _scan(target, _FP32, 128),
        _scan(target, _FP32, 256),
        _pick(target, _BF16, 1),
        *([_pick(target, _BF16, 5)] if target != "gfx942" else []),
        _pick(target, _FP32, 1),
    ]


def _scan(target: str, products: torch.dtype, width: int, *, every: bool = False) -> Configuration:
    tile = tile_for(width, products, target)
    constants, options = launch_options(tile, width, products, target)
    instruction, scores = _per_tensor_instruction(target, tile, products, constants["PRECISION"])
    arguments = {
        "z": products,
        "queue": products,
        "keys": torch.int64,
        "length": _QUEUE,
        "chunk": _QUEUE // tile.streamed // _splits(tile),
        "EVERY": every,
        "D": width,
        "BM": tile.owner,
        "BN": tile.streamed,
        **constants,
    }
    return Configuration(
        path="scan, every tile" if every else "scan",
        kernel=scan_kernel,
        dtype=str(products).removeprefix("torch."),
        config=f"D={width}, {tile.owner}×{tile.streamed}, {tile.warps} warps, {tile.stages} stages",
        arguments=arguments,
        options=options,
        unit="score",
        anchor=(instruction,),
        anchors_per_unit=width / tile.piece / scores,
        units_per_trip=tile.owner * tile.streamed,
        pieces=piece_products(tile, width, target),
        flops=2.0 * width * (3 if constants["PRECISION"] == "tf32x3" else 1),
        budget=_BUDGET if (products, width, every) == (_BF16, 256, False) else {},
    )


def _per_tensor_instruction(target: str, tile: Tile, products: torch.dtype, precision: str) -> tuple[str, float]:
    """The tensor instruction of a target, and how many scores of one thread it completes for one piece of the width.

    An instruction adds a slice of the width, 32 bytes deep (AMD's 16-bit ones half as deep, its fp32 ones a quarter),
    to the scores of a warp, of a warp group of four, or of the whole tile.
    """
    per_warp = tile.owner * tile.streamed / (32 * tile.warps)
    name, scores, depth = {
        "sm_80": ("HMMA", 4.0, 32),
        "sm_90": ("HGMMA", 64 * tile.streamed / 128, 32),
        "sm_100": ("UTCHMMA", per_warp, 32),
        "gfx942": ("v_mfma", 16.0, 16 if products.itemsize == 2 else 8),
    }[target]
    slices = tile.piece * products.itemsize / depth * (3 if precision == "tf32x3" else 1)
    return name, scores / slices


def _pick(target: str, stored: torch.dtype, k: int) -> Configuration:
    width = 256
    tile = tile_for(width, stored, target)
    slots = _QUEUE // tile.streamed if k > 1 else _splits(tile)
    arguments = {
        **dict.fromkeys(("x", "queue", "neighbors"), stored),
        **dict.fromkeys(("factor", "similarity"), _FP32),
        **dict.fromkeys(("keys", "index"), torch.int64),
        "rows": _BATCH,
        "slots": slots,
        "length": _QUEUE,
        "k": k,
        **pick_constants(width, k, tile.streamed),
    }
    moved = cost.pick_bytes(_BATCH, width, k, tile, slots=slots, z_itemsize=stored.itemsize, itemsize=stored.itemsize)
    # An element is one number of a candidate. Where the compiler unrolls every piece the whole kernel counts.
    if target == "gfx942" or (stored == _FP32 and target != "sm_100"):
        counted: dict[str, Any] = {"units_per_program": tile.streamed * width}
    else:
        counted = {**_MULTIPLY_ADD[target], "units_per_trip": tile.streamed * arguments["W"]}
    return Configuration(
        path="pick",
        kernel=pick_kernel,
        dtype=str(stored).removeprefix("torch."),
        config=f"D={width}, k={k}, tiles of {tile.streamed}, {PICK_WARPS} warps",
        arguments=arguments,
        options={"num_warps": PICK_WARPS},
        unit="element",
        bytes=moved / (_BATCH * k * tile.streamed * width),
        **counted,
    )


def _splits(tile: Tile) -> int:
    return splits_for(_BATCH // tile.owner, _QUEUE // tile.streamed, 2 * _PROCESSORS)
