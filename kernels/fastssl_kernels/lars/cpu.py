"""LARS on the CPU: one measuring pass, one host read of a host tensor, one fused update pass.

Three scalars a tensor say everything about its update, whatever the variant:

    added = s·(g + λw)        v ← μv + added        w ← w − γ·v

(A: s = γρ and γ = 1; B and C: s = ρ.) torch's fused SGD computes just this when its dampening is 1 − s, in one pass
over memory. Sums are taken over chunks that stay in the second-level cache, so that the three products of a chunk cost
one read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..ema.flat import flat
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
    if found_inf is not None and host_scalar(found_inf, "found_inf") != 0:
        return
    # Checked gradients must all be seen before the first weight changes; others are updated while they are cached.
    for part in [entries] if found_inf is not None else _one_by_one(entries):
        norms = _norms(part, loss_scale, check_all=found_inf is not None)
        if found_inf is not None and not all(math.isfinite(norm) for _, norm in norms):
            found_inf.fill_(1.0)
            return
        batches: dict[Factors, list[Entry]] = {}
        for entry, (weight_norm, gradient_norm) in zip(part, norms, strict=True):
            batches.setdefault(_factors(entry, weight_norm, gradient_norm, loss_scale), []).append(entry)
        for factors, batch in batches.items():
            _update(batch, factors, 1.0 - host_scalar(ema_momentum, "ema_momentum"))


def _one_by_one(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Each adapted entry alone, and all others together: they need no norms."""
    others = [entry for entry in entries if not entry.group["adapt"]]
    return [[entry] for entry in entries if entry.group["adapt"]] + [others]


def _factors(entry: Entry, weight_norm: float, gradient_norm: float, loss_scale: float) -> Factors:
    group = entry.group
    lr, momentum = host_scalar(group["lr"], "lr"), host_scalar(group["momentum"], "momentum")
    decay, eta = group["weight_decay"], group["eta"]
    variant, ratio = group["variant"], 1.0
    if group["adapt"]:
        if weight_norm != 0 and gradient_norm != 0:
            if variant == "C":
                gradient_norm += decay * weight_norm + LARC_EPSILON
            ratio = eta * weight_norm / gradient_norm
        elif variant == "C":
            decay = 0.0
    scale = ratio * lr if variant == "A" else ratio
    return Factors(
        scale / loss_scale, decay * loss_scale, momentum, 1.0 if variant == "A" else lr, bool(group["nesterov"])
    )


def _norms(entries: Sequence[Entry], loss_scale: float, *, check_all: bool) -> list[tuple[float, float]]:
    """(‖w‖, ‖g‖ or ‖g + λw‖ as the variant needs it) of every entry, unscaled; zeros where nobody asks.

    ‖g + λw‖² comes from the three products of g and w. Where they cancel, it is computed from the sum itself.
    """
    chunks: list[int] = []
    products: list[Tensor] = []
    for entry in entries:
        adapt = entry.group["adapt"]
        before = len(products)
        if adapt or check_all:
            for w, g in _chunks(entry):
                products.append(torch.dot(g, g))
                if adapt:
                    products += (torch.dot(w, w), torch.dot(g, w))
        chunks.append(len(products) - before)
    values = iter(_read(products))
    norms = []
    for entry, count in zip(entries, chunks, strict=True):
        own = [next(values) for _ in range(count)]
        if not entry.group["adapt"]:
            gg = _checked(sum(own), entry.gradient) if check_all else 0.0
            norms.append((0.0, math.sqrt(gg) / loss_scale))
            continue
        gg, ww, gw = sum(own[0::3]), sum(own[1::3]), sum(own[2::3])
        ww, gg = _checked(ww, entry.weight), _checked(gg, entry.gradient)
        decay = entry.group["weight_decay"] * loss_scale
        squares = gg
        if entry.group["variant"] != "C" and decay != 0:
            squares = gg + 2 * decay * gw + decay * decay * ww
            if not squares > 0.1 * (gg + decay * decay * ww):
                squares = sum(_exact_squares(torch.add(g, w, alpha=decay)) for w, g in _chunks(entry))
        norms.append((math.sqrt(ww), math.sqrt(squares) / loss_scale))
    return norms


def _chunks(entry: Entry) -> Iterable[tuple[Tensor, Tensor]]:
    """Matching flat pieces of weight and gradient, at least in float32."""
    pieces = zip(flat(entry.weight).split(CHUNK), flat(entry.gradient).split(CHUNK), strict=True)
    if entry.weight.dtype in (torch.float32, torch.float64):
        return pieces
    return ((w.float(), g.float()) for w, g in pieces)


def _read(products: list[Tensor]) -> list[float]:
    """Values of zero-dimensional host tensors of one or two dtypes."""
    if not products:
        return []
    return torch.stack([p.double() for p in products] if len({p.dtype for p in products}) > 1 else products).tolist()


def _checked(squares: float, tensor: Tensor) -> float:
    """A sum of squares, taken again in double precision where float32 may have lost it."""
    low, high = SAFE_SQUARES
    return squares if low < squares < high else _exact_squares(tensor)


def _exact_squares(tensor: Tensor) -> float:
    norm = host_scalar(torch.linalg.vector_norm(tensor, dtype=torch.float64), "norm")
    return norm * norm


def _update(batch: list[Entry], factors: Factors, ema_weight: float) -> None:
    plain = [entry for entry in batch if entry.average is None and entry.copy is None]
    if plain:
        _step(
            [flat(e.weight) for e in plain],
            [flat(e.gradient) for e in plain],
            [flat(e.velocity) for e in plain],
            factors,
        )
    for entry in batch:
        if entry.average is None and entry.copy is None:
            continue
        weights = flat(entry.weight).split(CHUNK)
        averages = weights if entry.average is None else flat(entry.average).split(CHUNK)
        copies = weights if entry.copy is None else flat(entry.copy).split(CHUNK)
        # Chunk by chunk, so that average and copy find the new weight in the cache.
        for w, g, v, average, copy in zip(
            weights,
            flat(entry.gradient).split(CHUNK),
            flat(entry.velocity).split(CHUNK),
            averages,
            copies,
            strict=True,
        ):
            _step([w], [g], [v], factors)
            if entry.average is not None:
                average.lerp_(w, ema_weight)
            if entry.copy is not None:
                copy.copy_(w)


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
