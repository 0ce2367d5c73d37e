"""Least work of a LARS step, and what its tables add."""

from __future__ import annotations

from collections.abc import Sequence


def parameter_bytes(
    sizes: Sequence[int], itemsize: int = 4, *, measured: Sequence[bool] | None = None, averaged: bool = False
) -> int:
    """28 bytes a parameter in float32: weight and gradient are read twice, the momentum once, two of them are written.

    sizes: elements of each tensor. measured: whether its norms are needed (adapted, or gradients are checked), all by
    default. averaged: with a moving average in the same sweep, 36 bytes.
    """
    needed = measured or [True] * len(sizes)
    update = 7 if averaged else 5
    return sum(size * itemsize * (update + 2 * need) for size, need in zip(sizes, needed, strict=True))


def table_bytes(sizes: Sequence[int], chunk: int, *, found: bool = False) -> int:
    """Words that the programs of both launches read and write beside the parameters.

    A program of the measurement reads its owner, 5 words of its row and 2 options, and writes two sums in float64; one
    of the update reads owner, row, options, the momentum of the average and every sum of its tensor. With `found`, the
    flag is read as well, but no option that says whether to measure.
    """
    total = 0
    for size in sizes:
        programs = -(-size // chunk)
        measure = 4 + 5 * 8 + 4 * (1 if found else 2) + 16
        update = 4 + 10 * 8 + 4 * 5 + 8 + 16 * programs + 4 * found
        total += programs * (measure + update)
    return total


def flops(sizes: Sequence[int]) -> int:
    """Measurement: unscaling, decay, two sums at three scales; update: unscaling and four fused steps."""
    return sum(sizes) * (3 + 2 * 3 * 4 + 1 + 4 * 2)
