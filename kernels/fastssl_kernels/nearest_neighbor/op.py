"""Nearest neighbours: validation and dispatch.

The operator carries the work, so that `torch.compile(fullgraph=True)` and CUDA graphs see one opaque call whose shapes
are known beforehand. It has no gradient: neighbours are rows of the queue, which nothing flows into.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import check
from . import cpu
from .queue import STORED, Queue


class Neighbors(NamedTuple):
    """What `nearest_neighbor` found, nearest first; all without gradient.

    rows: [B, D] for k = 1, else [B, k, D], in the dtype of `z`: rows of the queue.
    indices: [B] or [B, k] int64, places in the queue.
    similarity: [B] or [B, k] fp32, the cosine (the inner product of the unit row with the row of the queue).
    """

    rows: Tensor
    indices: Tensor
    similarity: Tensor


def nearest_neighbor(z: Tensor, queue: Tensor | Queue, k: int = 1) -> Neighbors:
    """The k rows of a queue nearest to each row, in cosine (NNCLR, arXiv 2104.14548, equation 1).

    Memory is O(B·D): similarities exist a tile at a time. Look up before `queue.enqueue`, or a row finds itself.

    Args:
        z: [B, D] embeddings of any floating dtype, of any length; B and D at least 1.
        queue: a `Queue`, or [K, D] unit rows of float32, bfloat16 or float16, on the device of `z`.
        k: how many neighbours, 1 to K.

    Returns:
        `Neighbors`. Tiles of the queue are compared with `z` rounded to the dtype of the queue, sums in fp32 (by the C
        library on the CPU, with both rows rounded to 1/32,767 of their length); inside the winning tile similarities
        are fp32 with `z` as it came. So a float32 queue gives the exact neighbour, and the similarity of a bfloat16
        queue's neighbour is within 2⁻⁷ of the best (2⁻⁸, the rounding of a row, for either of the two that are
        compared; 10⁻⁴ is usual).
        Equal rows of the queue tie to the lowest index. A zero row is equally near to all, one with a NaN gets some
        row.

    Raises:
        ValueError: shapes that are not [B, D] and [K, D], empty ones, another device, k out of range.
        TypeError: input that is not a tensor of a dtype named above.
    """
    if isinstance(queue, Queue):
        queue = queue.rows
    for name, tensor in (("z", z), ("queue", queue)):
        check.floating(name, tensor, TypeError)
        if tensor.ndim != 2 or tensor.numel() == 0:
            raise ValueError(f"{name} must be [rows, width] with at least one of each, got {tuple(tensor.shape)}")
    if queue.dtype not in STORED:
        raise TypeError(f"queue must be float32, bfloat16 or float16, got {queue.dtype}")
    if queue.shape[1] != z.shape[1]:
        raise ValueError(f"queue must have the width of z, {z.shape[1]}, got {queue.shape[1]}")
    if queue.device != z.device:
        raise ValueError(f"queue must be on the device of z, {z.device}, got {queue.device}")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= queue.shape[0]:
        raise ValueError(f"k must be an integer from 1 to the {queue.shape[0]} rows of the queue, got {k!r}")
    found = Neighbors(*lookup(z.detach(), queue.detach(), k))
    return Neighbors(*(t.squeeze(1) for t in found)) if k == 1 else found


@torch.library.custom_op("fastssl::nearest_neighbor", mutates_args=(), device_types="cpu")
def lookup(z: Tensor, queue: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [B, k, D], index [B, k] and similarity [B, k]."""
    return cpu.nearest_neighbor(z, queue, k)


@lookup.register_kernel("cuda")
def _(z: Tensor, queue: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    from . import launch  # Triton does not exist everywhere that torch does

    return launch.nearest_neighbor(z, queue, k)


@lookup.register_fake
def _(z: Tensor, queue: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    rows, width = z.shape
    index = z.new_empty((rows, k), dtype=torch.int64)
    return z.new_empty((rows, k, width)), index, z.new_empty((rows, k), dtype=torch.float32)
