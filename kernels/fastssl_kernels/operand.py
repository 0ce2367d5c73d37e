"""Rows as kernels with products read them."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from .rows_kernel import unit_rows_kernel, unit_rows_per_program
from .tile import padded_rows, padded_width


class Operand:
    """[problems, rows, D] -> `rows` [problems, padded, wide] in the dtype of the products, zeros where nothing was.

    real, padded: rows of a problem before and after; wide: numbers of a row, a power of two.
    stride: numbers from one problem to the next, 0 where all share one.
    """

    def __init__(self, x: Tensor, products: torch.dtype) -> None:
        problems, self.real, width = x.shape
        self.padded, self.wide = padded_rows(self.real), padded_width(width)
        self.rows = x.new_empty((problems, self.padded, self.wide), dtype=products)
        self.stride = self.padded * self.wide if problems > 1 else 0
        per_program = unit_rows_per_program(self.wide)
        total = problems * self.padded
        unit_rows_kernel[(triton.cdiv(total, per_program),)](
            x.contiguous(),
            self.rows,
            self.rows,
            total,
            self.real,
            self.padded,
            D=width,
            P=self.wide,
            NORMALIZE=False,
            SMALLEST=0.0,
            ROWS=per_program,
            num_warps=4,
        )
