"""NT-Xent and InfoNCE without the matrix of logits."""

from __future__ import annotations

from .op import info_nce, nt_xent
from .reference import Metrics, info_nce_reference, nt_xent_reference

__all__ = ["Metrics", "info_nce", "info_nce_reference", "nt_xent", "nt_xent_reference"]
