"""Kernels for self-supervised learning that drop into any torch code: torch and triton, nothing else."""

from __future__ import annotations

from .augment import render_views, study_parameters, view_parameters
from .byol import byol_loss
from .ema import ema_update_
from .lars import LARS, exclude_from_adaptation
from .nearest_neighbor import Neighbors, Queue, nearest_neighbor
from .nt_xent import Metrics, info_nce, nt_xent
from .relic import RelicMetrics, relic, sample_negatives
from .sinkhorn import sinkhorn, sinkhorn_from_features
from .swapped_prediction import swapped_prediction

__all__ = [
    "LARS",
    "Metrics",
    "Neighbors",
    "Queue",
    "RelicMetrics",
    "byol_loss",
    "ema_update_",
    "exclude_from_adaptation",
    "info_nce",
    "nearest_neighbor",
    "nt_xent",
    "relic",
    "render_views",
    "sample_negatives",
    "sinkhorn",
    "sinkhorn_from_features",
    "study_parameters",
    "swapped_prediction",
    "view_parameters",
]
