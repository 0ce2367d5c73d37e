"""Steps whose loss or gradients are not finite change nothing.

On the CPU the loss and the gradients are looked at after the backward pass, before anything is updated; what the
forward pass itself wrote (running statistics of batch norm, prototypes put back to unit length) is taken back. On a GPU
that look would make the host wait in every step, so there only the loss is read, where it is read anyway: at the steps
that are logged, and one that is not finite stops the run. With fp16 overflows are expected: `loss_scale` skips them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import UserError
from ..methods import Losses
from . import rundir

FILE = "bad_step.json"


class NotFinite(UserError):
    """Training has diverged: going on would only repeat it."""


class Guard:
    """Decides after each backward pass whether the step may change anything.

    Args:
        method: what is trained.
        device: where; anywhere but on the CPU every step is let through.
        most: skipped steps in a row at which the run stops.
        precision: with "fp16" every step is let through too.
    """

    def __init__(self, method: nn.Module, device: torch.device, most: int, precision: str = "fp32") -> None:
        self.refused: str | None = None
        """What was not finite in the step just made; None: it was made as usual."""
        self.in_a_row = 0
        """Steps refused since the last one that was not."""
        self.most = most
        self._method, self._active = method, device.type == "cpu" and precision != "fp16"
        self._written: list[Tensor] = [*method.parameters(), *method.buffers()]
        self._copies: list[Tensor] = []
        self._versions: dict[int, int] = {}
        self._learned = False

    @torch.no_grad()
    def remember(self) -> None:
        """Called before the forward pass: keep what it writes; all, until a step has shown what that is."""
        self.refused = None
        if not self._active:
            return
        if not self._learned:
            self._copies = [tensor.detach().clone() for tensor in self._written]
            self._versions = {id(tensor): tensor._version for tensor in self._written}
        elif self._written:
            torch._foreach_copy_(self._copies, self._written)

    @torch.no_grad()
    def refuses(self, losses: Losses) -> bool:
        """Called after the backward pass: whether this step is skipped, on all ranks alike."""
        if not self._active:
            return False
        self.refused = not_finite(losses, self._method)
        if _anywhere(self.refused is not None) and self.refused is None:
            self.refused = "loss or gradient of another process"
        if self.refused is None:
            self.in_a_row = 0
            if not self._learned:
                self._learn()
            return False
        self.in_a_row += 1
        if self._written:
            torch._foreach_copy_(self._written, self._copies)
        return True

    def _learn(self) -> None:
        """After a forward pass: from now on keep the tensors that it wrote, and all of a module that has one.

        Batch norm's kernels write running statistics without counting it as a change, its count of batches is counted.
        """
        kept: dict[int, Tensor] = {}
        for module in self._method.modules():
            own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            moved = any(tensor._version != self._versions[id(tensor)] for tensor in own)
            if moved or getattr(module, "running_mean", None) is not None:
                kept.update((id(tensor), tensor) for tensor in own)
        pairs = zip(self._written, self._copies, strict=True)
        self._copies = [copy for tensor, copy in pairs if id(tensor) in kept]
        self._written = [tensor for tensor in self._written if id(tensor) in kept]
        self._versions, self._learned = {}, True


def _anywhere(here: bool) -> bool:
    """Whether `here` is true in any process of the run."""
    if not (dist.is_available() and dist.is_initialized()):
        return here
    flag = torch.tensor(float(here))
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag.item())


def not_finite(losses: Losses, method: nn.Module) -> str | None:
    """The first of loss and gradients that holds a NaN or an infinity, in words, or None."""
    if not math.isfinite(losses.total.item()):
        return "loss"
    for name, parameter in method.named_parameters():
        gradient = parameter.grad
        # A sum with a NaN or an infinity in it is one; a sum of large numbers may be one too.
        if gradient is not None and not math.isfinite(gradient.sum().item()) and not gradient.isfinite().all():
            return f"gradient of {name}"
    return None


def stop(
    path: Path, what: str, losses: Losses, *, step: int, lr: float, in_a_row: int, saved_step: int, **where: Any
) -> NotFinite:
    """Write the step's state to `path`; the error to raise. `where`: what else is known of the step."""
    loss = losses.total.item()
    plain = {name: value.item() for name, value in losses.metrics.items()}
    bad = [name for name, value in plain.items() if not math.isfinite(value)]
    state = {
        "step": step,
        "lr": lr,
        "not_finite": [what, *bad],
        "in_a_row": in_a_row,
        "loss": _json(loss),
        "metrics": {name: _json(value) for name, value in plain.items()},
        **where,
    }
    try:
        rundir.write_json(path, state)
        described = f"{path.name} describes it"
    except OSError as error:
        described = f"{path.name} could not be written ({error})"
    value = f"the loss became {loss}" if what == "loss" else f"the {what} is not finite"
    row = f", in {in_a_row} steps in a row" if in_a_row > 1 else ""
    return NotFinite(
        f"{value} at step {step} (lr {lr:.3g}){row}; {described}, the last checkpoint is from step "
        f"{max(saved_step, 0)}: lower --optim.lr or lengthen --optim.warmup-epochs"
    )


def _json(value: float) -> float | str:
    """JSON has no NaN."""
    return value if math.isfinite(value) else str(value)
