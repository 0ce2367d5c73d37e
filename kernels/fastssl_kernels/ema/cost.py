"""Least work of the parameter average, and what its tables add."""

from __future__ import annotations

from collections.abc import Sequence


def parameter_bytes(sizes: Sequence[int], target_itemsize: int = 4, online_itemsize: int = 4) -> int:
    """Target and online are read, the target is written: 12 bytes a parameter in float32."""
    return sum(sizes) * (2 * target_itemsize + online_itemsize)


def table_bytes(sizes: Sequence[int], chunk: int) -> int:
    """Each program reads its owner, one row of four words, and the momentum as float64."""
    return sum(-(-size // chunk) for size in sizes) * (4 + 4 * 8 + 8)


def flops(sizes: Sequence[int]) -> int:
    """One difference and one multiply-add an element."""
    return 3 * sum(sizes)
