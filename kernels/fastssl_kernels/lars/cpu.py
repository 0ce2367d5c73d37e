"""LARS on the CPU: norms, then one fused pass, tensor by tensor while it is cached; averages of all in the end.

Five scalars a tensor say everything about its update, whatever the variant:

    added = s·(g + λw)        v ← μv + added        w ← w − γ·v        (Nesterov: w ← w − γ·(μv + added))

(A: s = γρ and γ = 1; B and C: s = ρ.) Without Nesterov momentum, torch's fused SGD computes just this when its
dampening is 1 − s, in one pass over memory. Sums are taken over chunks that stay in the second-level cache, so that the
three products of a chunk cost one read. Host tensors are read by `tolist`, which dispatches nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ..ema.op import check_momentum, ema_update_
from ..ema.scalar import host_scalar
from .entry import Entry
from .reference import LARC_EPSILON

CHUNK = 1 << 18
# A sum of squares outside this range has lost digits to underflow or overflow in float32.
SAFE_SQUARES = (1e-26, 1e30)
# Below this, 1 − (1 − s) in double precision is off by more than half a float32 unit in the last place.
SAFE_FACTOR = 2.0**-28


class Factors(NamedTuple):
    """The scalars of one update: `scale` s, `decay` λ, `momentum` μ, `lr` γ of the docstring above."""

    scale: float
    decay: float
    momentum: float
    lr: float
    nesterov: bool


def sweep(
    entries: Sequence[Entry],
    *,
    ema_momentum: float | Tensor,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """Step every entry in place; with `found_inf`, nothing changes where it is set or a gradient is not finite."""
    loss_scale = 1.0 if grad_scale is None else host_scalar(grad_scale, "grad_scale")
    kept = host_scalar(ema_momentum, "ema_momentum")
    check_momentum("ema_momentum", kept)
    norms: list[tuple[float, float]] | None = None
    if found_inf is not None:
        if host_scalar(found_inf, "found_inf") != 0:
            return
        # Every gradient must be seen before the first weight changes.
        norms = [_norms(entry, loss_scale) for entry in entries]
        if not all(math.isfinite(norm) for _, norm in norms):
            found_inf.fill_(1.0)
            return
    not_adapted: dict[int, list[Entry]] = {}
    for i, entry in enumerate(entries):
        if entry.group["adapt"]:
            weight_norm, gradient_norm = _norms(entry, loss_scale) if norms is None else norms[i]
            _update([entry], _factors(entry, weight_norm, gradient_norm, loss_scale))
        else:
            not_adapted.setdefault(id(entry.group), []).append(entry)
    for group in not_adapted.values():
        _update(group, _factors(group[0], 0.0, 0.0, loss_scale))
    averages = [(entry.average, entry.weight) for entry in entries if entry.average is not None]
    # To read the weights again costs less than to wait for all threads at every tensor.
    ema_update_([average for average, _ in averages], [weight for _, weight in averages], kept)


def _factors(entry: Entry, weight_norm: float, gradient_norm: float, loss_scale: float) -> Factors:
    group = entry.group
    lr, momentum = host_scalar(group["lr"], "lr"), host_scalar(group["momentum"], "momentum")
    decay, eta = group["weight_decay"], group["eta"]
    variant, ratio = group["variant"], 1.0
    if group["adapt"]:
        if weight_norm > 0 and gradient_norm > 0:
            if variant == "C":
                gradient_norm += decay * weight_norm + LARC_EPSILON
            ratio = eta * weight_norm / gradient_norm
        elif variant == "C":
            decay = 0.0
    scale = ratio * lr if variant == "A" else ratio
    outside = 1.0 if variant == "A" else lr
    return Factors(scale / loss_scale, decay * loss_scale, momentum, outside, bool(group["nesterov"]))


def _norms(entry: Entry, loss_scale: float) -> tuple[float, float]:
    """‖w‖, and ‖g‖ or ‖g + λw‖ as the variant needs it, of the unscaled gradient; 0 and ‖g‖ if it is not adapted.

    ‖g + λw‖² comes from the three products of g and w. Where they cancel, it is computed from the sum itself.
    """
    gg = ww = gw = 0.0
    adapt = entry.group["adapt"]
    decay = entry.group["weight_decay"] * loss_scale
    mixed = adapt and decay != 0 and entry.group["variant"] != "C"
    for w, g in _chunks(entry):
        gg += _dot(g, g)
        if adapt:
            ww += _dot(w, w)
        if mixed:
            gw += _dot(g, w)
    squares = gg = _checked(gg, entry.gradient)
    if not adapt:
        return 0.0, math.sqrt(gg) / loss_scale
    ww = _checked(ww, entry.weight)
    if mixed:
        squares = gg + 2 * decay * gw + decay * decay * ww
        if not squares > 0.1 * (gg + decay * decay * ww):
            squares = sum(_exact_squares(torch.add(g, w, alpha=decay)) for w, g in _chunks(entry))
    return math.sqrt(ww), math.sqrt(squares) / loss_scale


def _chunks(entry: Entry) -> Iterable[tuple[Tensor, Tensor]]:
    """Matching pieces of weight and gradient, at least in float32."""
    weight, gradient = entry.weight, entry.gradient
    exact = weight.dtype in (torch.float32, torch.float64)
    if weight.numel() <= CHUNK:
        return ((weight, gradient),) if exact else ((weight.float(), gradient.float()),)
    pieces = zip(weight.split(CHUNK), gradient.split(CHUNK), strict=True)
    return pieces if exact else ((w.float(), g.float()) for w, g in pieces)


def _dot(x: Tensor, y: Tensor) -> float:
    return cast(float, torch.dot(x, y).tolist())


def _checked(squares: float, tensor: Tensor) -> float:
    """A sum of squares, taken again in double precision where float32 may have lost it."""
    low, high = SAFE_SQUARES
    return squares if low < squares < high else _exact_squares(tensor)


def _exact_squares(tensor: Tensor) -> float:
    norm = host_scalar(torch.linalg.vector_norm(tensor, dtype=torch.float64), "norm")
    return norm * norm


def _update(batch: Sequence[Entry], factors: Factors) -> None:
    _step([e.weight for e in batch], [e.gradient for e in batch], [e.velocity for e in batch], factors)
    for entry in batch:
        if entry.copy is not None:
            entry.copy.copy_(entry.weight)


def _step(weights: list[Tensor], gradients: list[Tensor], velocities: list[Tensor], factors: Factors) -> None:
    scale, decay, momentum, lr, nesterov = factors
    if nesterov or momentum == 0 or 0 < scale < SAFE_FACTOR:
        for w, g, v in zip(weights, gradients, velocities, strict=True):
            _step_by_parts(w, g, v, factors)
        return
    torch._fused_sgd_(
        weights,
        gradients,
        velocities,
        weight_decay=decay,
        momentum=momentum,
        lr=lr,
        dampening=1.0 - scale,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )


def _step_by_parts(weight: Tensor, gradient: Tensor, velocity: Tensor, factors: Factors) -> None:
    """The same update written out, for the cases that fused SGD cannot express."""
    scale, decay, momentum, lr, nesterov = factors
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    for w, g, v in zip(weight.split(CHUNK), gradient.split(CHUNK), velocity.split(CHUNK), strict=True):
        added = g.to(wide).add(w, alpha=decay).mul_(scale)
        moved = v.to(wide).mul(momentum).add_(added)
        v.copy_(moved)
        direction = added.add_(moved, alpha=momentum) if nesterov else moved
        w.copy_(w.to(wide).sub_(direction, alpha=lr))
