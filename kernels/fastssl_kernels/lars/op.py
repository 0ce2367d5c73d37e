"""The LARS optimizer: options, state and dispatch to the sweep of the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..check import DTYPES
from ..ema.op import check_momentum, ema_update_
from . import cpu
from .entry import Entries, Entry
from .reference import VARIANTS

if TYPE_CHECKING:
    from .launch import Launcher

Pairs = tuple[Sequence[Tensor], Sequence[Tensor]]


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (arXiv 1708.03888) in the three published variants; see `reference.py`.

    On the CPU one step is a measuring pass and a fused pass over memory. On CUDA it is two kernel launches for any
    number of tensors of one dtype, without host synchronisation; with `lr` and the momenta as zero-dimensional tensors
    on the device, it can be captured in a CUDA graph after one ordinary step.

    Args:
        params: parameters or parameter groups of one device, of floating dtype. A group may set any option below that a
            star marks, and `adapt` (default True): False keeps the trust ratio at 1 (biases, normalisation).
        lr*: learning rate γ ≥ 0, a number or a zero-dimensional tensor.
        momentum*: μ in [0, 1), a number or a zero-dimensional tensor.
        weight_decay*: λ ≥ 0, added to the gradient as λw.
        eta*: trust coefficient η > 0.
        variant*: "A" (SimCLR), "B" (BYOL, MoCo v3, NNCLR) or "C" (SwAV: LARC over SGD).
        nesterov*: look one step ahead.
        ema: `(targets, online)`, equally long lists; after the step target ← m·target + (1 − m)·online, on CUDA in the
            same sweep. Every online tensor is one of `params`.
        ema_momentum: m in [0, 1], also settable as an attribute between steps; a number or a zero-dimensional tensor.
        copies: `(copies, online)`: tensors of any floating dtype that receive the new parameters, in the same sweep.

    Mixed precision: `torch.amp.GradScaler` sets `grad_scale` and `found_inf`, and so may anybody. Gradients are divided
    by `grad_scale` on the fly. With `found_inf` set to a zero-dimensional float32 tensor, the step also checks every
    gradient and writes 1 into it where one is not finite; where it is not 0, nothing changes: parameters, state,
    averages and copies.

    State: `momentum_buffer`, of the parameter's dtype and memory layout, from the first step on. Parameters whose
    `grad` is None are skipped (their moving average is not).

    Raises:
        ValueError: an option out of range, tensors on several devices, lists of `ema` or `copies` that do not fit.
        TypeError: a parameter that is not a plain tensor of floating dtype (a shard has no norm); sparse gradients.
    """

    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        *,
        momentum: float | Tensor = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.001,
        variant: str = "A",
        nesterov: bool = False,
        ema: Pairs | None = None,
        ema_momentum: float | Tensor = 0.99,
        copies: Pairs | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "eta": eta,
            "variant": variant,
            "nesterov": nesterov,
            "adapt": True,
        }
        super().__init__(params, defaults)
        check_momentum("ema_momentum", ema_momentum)
        self.ema_momentum = ema_momentum
        self._entries = Entries()
        self._launcher: Launcher | None = None
        self._averages = self._paired("ema", ema, same_dtype=True)
        self._copies = self._paired("copies", copies, same_dtype=False)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check_group(group)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `torch.optim.Optimizer.load_state_dict`; a state saved by another variant is refused.

        Raises:
            ValueError: the saved momentum has another meaning, because it was written by another variant.
        """
        for ours, theirs in zip(self.param_groups, state_dict["param_groups"], strict=False):
            if theirs.get("variant", ours["variant"]) != ours["variant"]:
                raise ValueError(
                    f"state_dict was saved with variant {theirs['variant']!r}, this optimizer is variant"
                    f" {ours['variant']!r}: their momentum buffers differ, build LARS with the saved variant"
                )
        super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        ours = {name: getattr(self, name) for name in ("_averages", "_copies", "ema_momentum")}
        return {**super().__getstate__(), **ours}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # Also called by load_state_dict, with the groups and the state alone.
        self._entries = Entries()
        self.__dict__.setdefault("_launcher", None)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient. Returns what `closure`, if given, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        check_momentum("ema_momentum", self.ema_momentum)
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if found_inf is not None and found_inf.dtype != torch.float32:
            raise TypeError(f"found_inf must be of dtype torch.float32, got {found_inf.dtype}")
        entries, staged = self._ready()
        if entries:
            self._sweep(entries[0].weight.device)(
                entries,
                ema_momentum=self.ema_momentum,
                grad_scale=getattr(self, "grad_scale", None),
                found_inf=found_inf,
            )
        self._entries.release(entries)
        for tensor, dense in staged:
            tensor.copy_(dense)
        idle = [(target, p) for p, target in self._averages.items() if p.grad is None]
        if idle:
            momentum = self.ema_momentum
            if found_inf is not None:
                momentum = torch.where(found_inf != 0, 1.0, momentum)
            ema_update_([target for target, _ in idle], [p for _, p in idle], momentum)
        return loss

    def _sweep(self, device: torch.device) -> Callable[..., None]:
        if device.type == "cpu":
            return cpu.sweep
        if self._launcher is None:
            from .launch import Launcher  # Triton does not exist everywhere that torch does

            self._launcher = Launcher()
        return self._launcher.sweep

    def _ready(self) -> tuple[list[Entry], list[tuple[Tensor, Tensor]]]:
        """Parameters with gradients, and `(tensor, stand-in)` of what has to be written back after the step."""
        entries: list[Entry] = []
        staged: list[tuple[Tensor, Tensor]] = []
        devices: set[torch.device] = set()
        averages, copies = self._averages, self._copies

        def later(tensor: Tensor, stand_in: Tensor) -> None:
            staged.append((tensor, stand_in))

        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    devices.add(p.device)
                    entries.append(self._entries.of(p, group, self.state[p], averages.get(p), copies.get(p), later))
        if len(devices) > 1:
            raise ValueError(f"LARS steps parameters of one device, got {', '.join(sorted(map(str, devices)))}")
        return entries, staged

    def _paired(self, name: str, pairs: Pairs | None, *, same_dtype: bool) -> dict[Tensor, Tensor]:
        """`{parameter: partner}` of a checked `(partners, parameters)`."""
        if pairs is None:
            return {}
        if not isinstance(pairs, (tuple, list)) or len(pairs) != 2:
            got = f"{len(pairs)} of them" if isinstance(pairs, (tuple, list)) else type(pairs).__name__
            raise ValueError(f"{name} needs two equally long lists, got {got}")
        partners, parameters = list(pairs[0]), list(pairs[1])
        if len(partners) != len(parameters):
            raise ValueError(f"{name} needs two equally long lists, got {len(partners)} and {len(parameters)} tensors")
        known = {p for group in self.param_groups for p in group["params"]}
        for i, (partner, p) in enumerate(zip(partners, parameters, strict=True)):
            if p not in known:
                raise ValueError(f"{name}[1][{i}], of shape {tuple(p.shape)}, is not a parameter of this optimizer")
            if partner.shape != p.shape or partner.device != p.device:
                raise ValueError(
                    f"{name}[0][{i}] must be of shape {tuple(p.shape)} on {p.device},"
                    f" got {tuple(partner.shape)} on {partner.device}"
                )
            if (same_dtype and partner.dtype != p.dtype) or partner.dtype not in DTYPES:
                raise TypeError(f"{name}[0][{i}] must be of dtype {p.dtype}, got {partner.dtype}")
        if not same_dtype and len({partner.dtype for partner in partners}) > 1:
            raise TypeError(f"{name}[0] must be of one dtype, got {sorted({str(t.dtype) for t in partners})}")
        return dict(zip(parameters, partners, strict=True))


def _check_group(group: dict[str, Any]) -> None:
    def number(name: str, low: float, high: float, bound: str) -> None:
        value = group[name]
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"{name} must be a number or a zero-dimensional tensor, got {tuple(value.shape)}")
            return
        try:
            within = low <= value < high
        except TypeError:
            within = False
        if not within:
            raise ValueError(f"{name} must be {bound}, got {value!r}")

    infinity = float("inf")
    number("lr", 0.0, infinity, "≥ 0")
    number("momentum", 0.0, 1.0, "in [0, 1)")
    number("weight_decay", 0.0, infinity, "≥ 0")
    number("eta", 1e-30, infinity, "> 0")
    if group["variant"] not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {group['variant']!r}")
    for p in group["params"]:
        if type(p) not in (Tensor, nn.Parameter):
            raise TypeError(f"LARS needs norms of whole tensors: plain parameters, got {type(p).__name__}")
        if p.dtype not in DTYPES:
            raise TypeError(f"LARS needs floating parameters of 16 bits or more, got {p.dtype} of {tuple(p.shape)}")
