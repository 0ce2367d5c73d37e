"""Kernels for self-supervised learning that drop into any torch code: torch and triton, nothing else."""

from __future__ import annotations

from .nt_xent import Metrics, info_nce, nt_xent

__all__ = [
    "Metrics",
    "info_nce",
    "nt_xent",
]
