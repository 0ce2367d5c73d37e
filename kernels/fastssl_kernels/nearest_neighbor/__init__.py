"""Nearest neighbours in a queue of embeddings, without the matrix of similarities."""

from __future__ import annotations

from .op import Neighbors, nearest_neighbor
from .queue import Queue
from .reference import nearest_neighbor_reference

__all__ = ["Neighbors", "Queue", "nearest_neighbor", "nearest_neighbor_reference"]
