"""What a sweep works on: the flat tensors of one parameter and the options of its group."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..ema.flat import flat, in_order_of, is_dense

_NOTHING = torch.empty(0)


@dataclass
class Entry:
    """One parameter that takes part in a step.

    All tensors are one-dimensional aliases in one memory order. `weight`, `gradient` and `velocity` share a dtype, and
    so does `average` (the target of the moving average) if it is given; `copy` may be of another. `group` is the
    optimizer's parameter group.
    """

    weight: Tensor
    gradient: Tensor
    velocity: Tensor
    group: dict[str, Any]
    average: Tensor | None = None
    copy: Tensor | None = None


class Entries:
    """Makes the entries of a step, and keeps them from step to step: only gradients change, unless a tensor moves."""

    def __init__(self) -> None:
        self._known: dict[Tensor, tuple[tuple[object, ...], Entry]] = {}

    def release(self, entries: Iterable[Entry]) -> None:
        """Let go of the gradients, whose memory belongs to the backward pass."""
        for entry in entries:
            entry.gradient = _NOTHING

    def of(
        self,
        p: Tensor,
        group: dict[str, Any],
        state: dict[str, Any],
        average: Tensor | None,
        copy: Tensor | None,
        later: Callable[[Tensor, Tensor], None],
    ) -> Entry:
        """The entry of a parameter with a gradient; makes its momentum buffer if it has none.

        Tensors whose memory order does not allow a flat alias are replaced by a copy, and `later(tensor, copy)` is told
        to write it back after the step.
        """
        gradient = p.grad
        assert gradient is not None
        if gradient.layout != torch.strided:
            raise TypeError(f"LARS needs dense gradients, got layout {gradient.layout} of shape {tuple(p.shape)}")
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        where = (
            p.data_ptr(),
            p.stride(),
            state["momentum_buffer"].data_ptr(),
            0 if average is None else average.data_ptr(),
            0 if copy is None else copy.data_ptr(),
        )
        known = self._known.get(p)
        if known is not None and known[0] == where and known[1].group is group:
            entry = known[1]
            if gradient.dtype == p.dtype and gradient.stride() == where[1]:
                entry.gradient = flat(gradient)
                return entry
        weight = p.detach()
        if not is_dense(weight):
            weight = weight.contiguous()
            later(p, weight)
        buffer = state["momentum_buffer"] = in_order_of(state["momentum_buffer"], weight)
        parts: list[Tensor | None] = []
        for partner in (average, copy):
            ordered = None if partner is None else in_order_of(partner.detach(), weight)
            if partner is not None and ordered is not None and ordered.data_ptr() != partner.data_ptr():
                later(partner, ordered)
            parts.append(None if ordered is None else flat(ordered))
        entry = Entry(flat(weight), flat(in_order_of(gradient.to(p.dtype), weight)), flat(buffer), group, *parts)
        in_place = weight.data_ptr() == where[0] and [0 if t is None else t.data_ptr() for t in parts] == [*where[3:]]
        if in_place and buffer.data_ptr() == where[2]:
            self._known[p] = (where, entry)
        return entry
