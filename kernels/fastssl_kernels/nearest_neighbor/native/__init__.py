"""Both passes of a lookup in C: the first with products of 16-bit integers, nearly twice as many a second as of floats.

The library is built by setup.py where there is a C compiler. A copy of the folder without it works all the same, with
torch's products in its place.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from ...arithmetic import capabilities
from ...native import load, run

GROUP = 64
"""Rows of the queue with one maximum, as in scan.c."""

_ONE = 32767.0
_LANES = {"avx2": 16, "avx512": 32}
_ALONE = 1 << 23
"""Products that one thread is quicker with than two."""


class _Pick(ctypes.Structure):
    """`Pick` of scan.c, field for field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("unit", "queue", "place", "score")),
        *((name, ctypes.c_int64) for name in ("rows", "count", "width", "version", "next")),
    )


class _Job(ctypes.Structure):
    """`Job` of scan.c, field for field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("unit", "queue", "peaks")),
        *((name, ctypes.c_int64) for name in ("panels", "length", "width", "version", "next", "failed")),
    )


@cache
def _library() -> ctypes.CDLL | None:
    return load(f"{__name__}._scan", fastssl_scan=_Job, fastssl_score=_Pick)


@cache
def versions() -> tuple[str, ...]:
    """The instruction sets that the library has code for and this machine runs, slowest first; empty without it."""
    library = _library()
    have = 0 if library is None else library.fastssl_scan_versions()
    return tuple(name for bit, name in enumerate(_LANES) if have >> bit & 1)


def preferred() -> bool:
    """Whether this machine is faster with the library than with torch's products: not where it has matrix units."""
    have = capabilities()
    # Of AVX-512's floats a core multiplies as many at a time as of AVX2's integers.
    outdone = have.get("amx_bf16") or (have.get("avx512_f") and "avx512" not in versions())
    return bool(versions()) and not outdone


def peaks(unit: Tensor, queue: Tensor, version: str | None = None) -> Tensor:
    """[groups, rows] fp32: the largest score of every `GROUP` rows of the queue, of which the last may be fewer.

    Args:
        unit: fp32 [rows, D], of length one or zero.
        queue: bfloat16 [K, D].
        version: one of `versions()`; None for the best.

    Returns:
        Scores within √D / 32,767 times the length of a row of the queue; some number where a row is not finite.

    Raises:
        MemoryError: no memory for one group.
    """
    version = version or versions()[-1]
    lanes, (rows, width) = _LANES[version], unit.shape
    panels, pairs = -(-rows // lanes), (width + 1) // 2
    packed = torch.zeros((panels * lanes, 2 * pairs), dtype=torch.int16)
    packed[:rows, :width] = (unit * _ONE).round_().nan_to_num_(0.0).clamp_(-_ONE, _ONE)
    packed = packed.view(panels, lanes, pairs, 2).transpose(1, 2).contiguous()
    queue = queue.contiguous()
    found = unit.new_empty((-(-len(queue) // GROUP), panels * lanes))
    pointers = (tensor.data_ptr() for tensor in (packed, queue, found))
    job = _Job(*pointers, panels, len(queue), width, _bit(version))
    _run("fastssl_scan", job, packed.numel() * len(queue))
    if job.failed:
        raise MemoryError(f"no memory for {GROUP} rows of a queue of width {width}")
    return found[:, :rows]


def scores(unit: Tensor, queue: Tensor, place: Tensor, version: str | None = None) -> Tensor:
    """[rows, count] fp32: inner products of each row with some rows of the queue, sums in fp32.

    Args:
        unit: fp32 [rows, D].
        queue: bfloat16 [K, D].
        place: int64 [rows, count], from 0 to K - 1.
        version: as in `peaks`.
    """
    unit, queue, place = unit.contiguous(), queue.contiguous(), place.contiguous()
    found = unit.new_empty(place.shape)
    pointers = (tensor.data_ptr() for tensor in (unit, queue, place, found))
    job = _Pick(*pointers, *place.shape, unit.shape[1], _bit(version or versions()[-1]))
    _run("fastssl_score", job, place.numel() * unit.shape[1])
    return found


def _bit(version: str) -> int:
    return 1 << list(_LANES).index(version)


def _run(function: str, job: _Job | _Pick, products: int) -> None:
    run(getattr(_library(), function), job, alone=products < _ALONE)
