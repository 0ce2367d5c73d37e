"""fp16: losses are multiplied before the backward pass, so that small gradients do not round to 0.

    scaled backward pass → a gradient that is not finite? → no: step with gradients / scale; yes: nothing changes
    scale ← scale / 2 after an overflow, · 2 after 2,000 steps in a row without one

Scale, count and verdict live on the device and nothing asks for them: the step is always issued, and the device leaves
everything as it was. LARS and fused AdamW skip by themselves. What else a step writes (running statistics, prototypes,
targets, queues, memories, SGD's momentum) is copied before the forward pass, and put back by arithmetic on its bits:
x ← x + found · (copy − x) in integers, which wrap, so that it is exact also where x is a NaN.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import UserError
from ..methods import Losses
from ..optim import LARS

START, GROWTH, BACKOFF, INTERVAL = 2.0**16, 2.0, 0.5, 2000
"""Those of `torch.amp.GradScaler`."""
LEAST = 1.0
"""Below it no scale helps: gradients overflow as they are."""

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class LossScale:
    """The dynamic scale of the loss, and the steps that it skips, without a host synchronisation.

    It holds a copy of all parameters and buffers of the method.

    Args:
        method: what is trained, on its device, wrapped and converted as it will be.
        optimizer: LARS, fused AdamW or SGD over the method's parameters.
        start: the first scale.
        interval: clean steps in a row after which the scale doubles.

    Raises:
        UserError: another optimizer, whose step could not be taken back.
    """

    def __init__(
        self, method: nn.Module, optimizer: torch.optim.Optimizer, *, start: float = START, interval: int = INTERVAL
    ) -> None:
        self._optimizer, self._interval = optimizer, interval
        self._skips = bool(getattr(optimizer, "_step_supports_amp_scaling", False))
        if not self._skips and type(optimizer) is not torch.optim.SGD:
            raise UserError(
                f"--train.precision fp16 needs an optimizer that can skip a step on the device, LARS, SGD or fused "
                f"AdamW, got {type(optimizer).__name__}: choose one of them, or --train.precision bf16"
            )
        self._held: list[Tensor] = [*method.parameters(), *method.buffers()]
        device = self._held[0].device
        # On a GPU LARS divides and looks in the sweep that it makes anyway. Its step on the CPU would round otherwise.
        self._folded = isinstance(optimizer, LARS) and device.type != "cpu"
        self.scale = torch.full((), start, device=device)
        """float32 scalar on the device."""
        self.clean = torch.zeros((), dtype=torch.int32, device=device)
        """Steps without an overflow since the scale changed."""
        self.skipped = torch.zeros((), device=device)
        """Steps that changed nothing, float32."""
        self._found = torch.zeros((), device=device)
        self._kept: list[tuple[list[Tensor], list[Tensor]]] = []
        if not self._skips:
            _begin_momentum(optimizer)

    @torch.no_grad()
    def remember(self) -> None:
        """Called before the forward pass: copy what a step writes."""
        current = _by_bits([*self._held, *([] if self._skips else _state(self._optimizer))])
        if not self._kept:
            self._kept = [(own, [torch.empty_like(tensor) for tensor in own]) for own in current]
        # State may have been loaded since the last step: the tensors are new, their shapes are not.
        self._kept = [(own, copies) for own, (_, copies) in zip(current, self._kept, strict=True)]
        for own, copies in self._kept:
            torch._foreach_copy_(copies, own)

    @torch.no_grad()
    def step(self, losses: Losses) -> None:
        """The optimizer's step with gradients / scale, which changes nothing where these or the loss are not finite.

        A rank's loss is its own, so the ranks ask each other on the device. Gradients are averaged over them, an
        overflow of one included: all ranks look at the same bits and come to the same verdict.
        """
        optimizer: Any = self._optimizer
        self._found.copy_(losses.total.detach().isfinite().logical_not())
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self._found, dist.ReduceOp.MAX)
        if self._folded:
            optimizer.grad_scale = self.scale
        else:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._found, self.scale.reciprocal())
        if self._skips:
            optimizer.found_inf = self._found
        try:
            optimizer.step()
        finally:
            for name in ("grad_scale", "found_inf"):
                optimizer.__dict__.pop(name, None)

    @torch.no_grad()
    def settle(self) -> None:
        """Called after all else of the step: take back what a skipped one wrote, and move the scale."""
        for own, copies in self._kept:
            torch._foreach_sub_(copies, own)
            torch._foreach_mul_(copies, self._found.to(own[0].dtype))
            torch._foreach_add_(own, copies)
        self.skipped.add_(self._found)
        torch._amp_update_scale_(self.scale, self.clean, self._found, GROWTH, BACKOFF, self._interval)

    def metrics(self) -> dict[str, Tensor]:
        """Of the steps so far: the scale of the next one, and how many were skipped."""
        return {"loss_scale": self.scale, "skipped_steps": self.skipped}

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint needs."""
        return {"scale": self.scale, "clean": self.clean, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from there. Raises `KeyError` where something is missing."""
        for name, own in self.state_dict().items():
            own.copy_(state[name])


def _begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """SGD makes its momentum in the first step, from that step's gradient. From zero the first step is the same."""
    for group in optimizer.param_groups:
        for p in group["params"] if group["momentum"] else ():
            if p.requires_grad:
                optimizer.state[p].setdefault("momentum_buffer", torch.zeros_like(p))


def _state(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def _by_bits(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Views of the tensors as integers, those of one width together."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        bits = _BITS[tensor.element_size()]
        groups.setdefault(bits, []).append(tensor.detach().view(bits))
    return list(groups.values())
