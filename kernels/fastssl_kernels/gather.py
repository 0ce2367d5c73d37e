"""Rows of every rank, in the order that one process would hold them.

A group travels by its name, because an operator that `torch.compile` can trace takes strings and not process groups.
The empty name is this process alone.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group

Group = dist.ProcessGroup | Literal["local"] | None


def group_name(group: Group) -> str:
    """The name behind the public argument: None is the default group if there is one, "local" is no group."""
    if isinstance(group, str):
        if group != "local":
            raise ValueError(f'group must be a process group, None or "local", got {group!r}')
        return ""
    if not (dist.is_available() and dist.is_initialized()):
        if group is not None:
            raise ValueError("group was given but torch.distributed is not initialised: call init_process_group first")
        return ""
    group = group if group is not None else dist.group.WORLD
    return group.group_name if group is not None and group.size() > 1 else ""


def size_and_rank(name: str) -> tuple[int, int]:
    """Ranks in the group and this process's place among them."""
    if not name:
        return 1, 0
    group = _named(name)
    return group.size(), group.rank()


def gather_rows(rows: Tensor, segments: int, name: str) -> Tensor:
    """[segments·B, ...] of each of W ranks -> [segments·W·B, ...]: segment by segment, ranks in order within each.

    Every rank must hold the same number of rows. Without a group the rows themselves come back.
    """
    if not name:
        return rows
    group = _named(name)
    rows = rows.contiguous()
    gathered = rows.new_empty((group.size() * rows.shape[0], *rows.shape[1:]))
    # Bytes: not every back end knows every dtype.
    # The collective's name since torch 2.14, and before.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(_bytes(gathered), _bytes(rows), group=group)
    if segments == 1:
        return gathered
    by_rank = gathered.view(group.size(), segments, rows.shape[0] // segments, *rows.shape[1:])
    return by_rank.transpose(0, 1).reshape(gathered.shape)


def all_reduce(x: Tensor, operation: Literal["sum", "max", "min"], name: str) -> Tensor:
    """Combine `x` of all ranks, in place and element by element; without a group nothing happens."""
    if name:
        operations = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}
        dist.all_reduce(x, operations[operation], group=_named(name))
    return x


def _named(name: str) -> dist.ProcessGroup:
    return _resolve_process_group(cast(Any, name))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)
