"""Least work of BYOL's loss for B rows of width D with e bytes an element."""

from __future__ import annotations


def forward_bytes(rows: int, width: int, itemsize: int) -> int:
    """Both matrices are read once; a loss and three statistics a row are written in float32."""
    return 2 * rows * width * itemsize + 4 * 4 * rows


def backward_bytes(rows: int, width: int, itemsize: int) -> int:
    """Both matrices, three statistics and the incoming gradient are read, the gradient of the prediction is written."""
    return 3 * rows * width * itemsize + 4 * 4 * rows


def flops(rows: int, width: int) -> int:
    """Three products forward (p·p, z·z, p·z), one combination of two vectors backward; a multiply-add counts 2."""
    return 2 * (3 + 2) * rows * width
