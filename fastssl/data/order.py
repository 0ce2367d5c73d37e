"""The order of an epoch: a true global permutation that is computed, not stored.

Positions 0 … n - 1 pass through a keyed bijection of [0, 4^k), the least power of four that holds n (at least 64): six
Feistel rounds whose keys come from (seed, epoch). Results outside [0, n) go through it again until they fall inside
("cycle walking"), which is what makes the bijection of [0, 4^k) one of [0, n). Cost is constant for each index, so
a resumed or re-sharded run finds its place at once.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import UserError
from .counter import ORDER_VIEW, words

LastBatch = Literal["drop", "pad"]

_ROUNDS = 6


def _mix(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """A bijection of 32-bit words in which every input bit reaches every output bit (MurmurHash3's finaliser)."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def _encrypt(x: NDArray[np.uint32], half_bits: int, keys: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Feistel network on words of 2 · `half_bits` bits."""
    shift, mask = np.uint32(half_bits), np.uint32((1 << half_bits) - 1)
    left, right = x >> shift, x & mask
    for key in keys:
        # The upper bits of the hash are the better mixed ones.
        left, right = right, left ^ (_mix(right ^ key) >> np.uint32(32 - half_bits))
    return (left << shift) | right


def permuted(indices: ArrayLike, n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The items at the given positions of the epoch's permutation of 0 … n - 1.

    Args:
        indices: int64 `[M]` positions, each in [0, n).
        n: number of items, in [1, 2³²).
        seed: in [0, 2⁶⁴).
        epoch: in [0, 2³²).

    Returns:
        int64 `[M]`; over all positions each item appears once.

    Raises:
        UserError: n out of range.
        ValueError: a position out of range.
    """
    if not 0 < n < 1 << 32:
        raise UserError(f"the number of samples must be in [1, 2^32), got {n}")
    positions = np.asarray(indices, dtype=np.int64)
    if positions.size and not (positions.min() >= 0 and positions.max() < n):
        raise ValueError(f"indices must be in [0, {n}), got {positions.min()} … {positions.max()}")
    half_bits = max(3, -(-(n - 1).bit_length() // 2))
    keys = words(seed, epoch, [0], ORDER_VIEW, _ROUNDS)[0]
    items = _encrypt(positions.astype(np.uint32), half_bits, keys)
    outside = np.flatnonzero(items >= n)
    while outside.size:
        items[outside] = _encrypt(items[outside], half_bits, keys)
        outside = outside[items[outside] >= n]
    return items.astype(np.int64)


def steps_per_epoch(n: int, batch_size: int, last: LastBatch = "drop") -> int:
    """Global batches in n samples.

    "drop" leaves the remainder out (it differs from epoch to epoch); "pad" makes a batch of it, filled up with the
    first samples of the epoch.

    Raises:
        UserError: the batch is empty or greater than the data, or `last` is neither.
    """
    if last not in ("drop", "pad"):
        raise UserError(f"last must be drop or pad, got {last!r}")
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")
    if batch_size > n:
        raise UserError(f"batch_size {batch_size} is greater than the {n} images of the data set; use {n} or less")
    return -(-n // batch_size) if last == "pad" else n // batch_size


def batch_ids(
    step: int,
    *,
    n: int,
    batch_size: int,
    seed: int,
    epoch: int,
    rank: int = 0,
    world: int = 1,
    last: LastBatch = "drop",
) -> NDArray[np.int64]:
    """Samples of one rank at one step: its slice of global batch `step`, the positions step · B … step · B + B - 1.

    With "pad", positions count modulo n: over the epoch's ⌈n / B⌉ steps each sample is shown once, and the
    ⌈n / B⌉ · B - n samples at the epoch's first positions once more. No batch holds a sample twice, as B ≤ n.

    Args:
        step: in [0, `steps_per_epoch`).
        n: number of samples.
        batch_size: global batch size B, a multiple of `world`.
        seed, epoch: of the permutation.
        rank: in [0, world).
        world: number of ranks.
        last: what becomes of the n mod B samples of an incomplete batch.

    Returns:
        int64 `[B / world]`; the ranks' slices in rank order are the global batch, whatever their number.

    Raises:
        UserError: B is no multiple of `world`, or greater than n.
    """
    steps = steps_per_epoch(n, batch_size, last)
    if batch_size % world:
        raise UserError(f"batch_size {batch_size} must be a multiple of the number of processes, {world}")
    if not 0 <= rank < world:
        raise ValueError(f"rank must be in [0, {world}), got {rank}")
    if not 0 <= step < steps:
        raise ValueError(f"step must be in [0, {steps}), got {step}")
    share = batch_size // world
    start = step * batch_size + rank * share
    return permuted(np.arange(start, start + share) % n, n, seed, epoch)
