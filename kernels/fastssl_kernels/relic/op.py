"""RELIC's loss without the matrices of logits: memory O(rows · width), one operator for all pairs of views."""

from __future__ import annotations

from typing import Literal, get_args, overload

import torch
from torch import Tensor

from .. import check
from ..arithmetic import product_dtype
from ..gather import Group, group_name
from . import operators  # noqa: F401  (registers torch.ops.fastssl.*)
from .reference import RelicMetrics, StopGradient


@overload
def relic(
    online: Tensor,
    target: Tensor,
    *,
    views: tuple[int, int],
    temperature: float,
    alpha: float,
    negatives: Tensor | None = ...,
    self_pairs: bool = ...,
    stop_gradient: StopGradient = ...,
    group: Group = ...,
    return_metrics: Literal[False] = ...,
) -> Tensor: ...
@overload
def relic(
    online: Tensor,
    target: Tensor,
    *,
    views: tuple[int, int],
    temperature: float,
    alpha: float,
    negatives: Tensor | None = ...,
    self_pairs: bool = ...,
    stop_gradient: StopGradient = ...,
    group: Group = ...,
    return_metrics: Literal[True],
) -> tuple[Tensor, RelicMetrics]: ...
def relic(
    online: Tensor,
    target: Tensor,
    *,
    views: tuple[int, int],
    temperature: float,
    alpha: float,
    negatives: Tensor | None = None,
    self_pairs: bool = True,
    stop_gradient: StopGradient = "second",
    group: Group = None,
    return_metrics: bool = False,
) -> Tensor | tuple[Tensor, RelicMetrics]:
    """Contrast every crop with its image's large crops, and keep predictions invariant across crops.

    RELIC (Mitrovic et al. 2021, arXiv 2010.07922) is `views=(2, 0), self_pairs=False`; RELICv2 (Tomasev et al. 2022,
    arXiv 2201.05119) is `views=(4, 2)` with sampled negatives, its loss being the sum over all pairs divided by
    (L + S)·L. The mathematics is in `reference.py`.

    online: [(L + S)·B, D] predictions of the online network, view-major, large crops first. Any floating dtype; rows
        need not be unit length.
    target: [L·B, D] projections of the target network for the large crops. No gradient reaches it.
    views: (L, S), large and small crops of an image; L ≥ 1, S ≥ 0.
    temperature: τ > 0; logits are cosine / τ.
    alpha: weight α ≥ 0 of the divergence between a prediction and the one after exchanging views. At 0 it costs
        nothing.
    negatives: [n] int64 images of the global batch (rank r holds images r·B to (r + 1)·B − 1), as `sample_negatives`
        draws them, the same on every rank. None takes all other images. An image is never its own negative; n = 0
        leaves none.
    self_pairs: count pairs of a large crop with itself, online against target. RELICv2's pseudo-code does; RELIC pairs
        different crops.
    stop_gradient: which part of KL(p ‖ q) gets no gradient: "second" (q), "first" (p), or "entropy"
        (sg[E_p log p] − E_p log q). No official training code settles it, so that a recipe chooses.
    group: processes whose images serve as negatives, each with the same B. None is the default process group, or this
        process alone where torch.distributed is not initialised; "local" never communicates.
    return_metrics: also return `RelicMetrics`, from the same pass.

    Returns the fp32 scalar mean over pairs and over all images of all ranks. Products use bf16 or fp16 operands if a
    tensor has that dtype or autocast asks for it; everything else is fp32. The gradient is that of the global mean
    times the number of ranks, so that averaging over ranks gives exactly the one-process gradient. A zero row counts
    as the zero vector and gets no gradient.

    Raises ValueError where shapes, dtypes, devices, views, temperature, alpha, negatives or group make no sense.
    """
    large, small = _check_views(views, self_pairs)
    for name, x, symbol, count in (("online", online, "(L + S)", large + small), ("target", target, "L", large)):
        check.rows(name, x)
        if x.shape[0] % count:
            raise ValueError(f"{name} has {x.shape[0]} rows, which is not a multiple of {symbol}={count}")
    if online.shape[0] // (large + small) != target.shape[0] // large or online.shape[1] != target.shape[1]:
        raise ValueError(
            f"online and target must be [(L + S)·B, D] and [L·B, D] with views={tuple(views)}, "
            f"got {tuple(online.shape)} and {tuple(target.shape)}"
        )
    if target.device != online.device:
        raise ValueError(f"target must be on the device of online, {online.device}, got {target.device}")
    if negatives is not None:
        _check_negatives(negatives, online.device)
    check.number("temperature", temperature)
    check.number("alpha", alpha, zero=True)
    if stop_gradient not in get_args(StopGradient):
        raise ValueError(f"stop_gradient must be one of {get_args(StopGradient)}, got {stop_gradient!r}")
    loss, statistics, *_ = torch.ops.fastssl.relic_forward(
        online,
        target.detach(),
        negatives,
        large,
        small,
        float(temperature),
        float(alpha),
        self_pairs,
        stop_gradient,
        product_dtype(online, target),
        return_metrics,
        torch.is_grad_enabled() and online.requires_grad,
        group_name(group),
    )
    return (loss, RelicMetrics(*statistics.detach().unbind())) if return_metrics else loss


def _check_views(views: tuple[int, int], self_pairs: bool) -> tuple[int, int]:
    if not isinstance(views, (tuple, list)) or len(views) != 2 or not all(type(v) is int for v in views):
        raise ValueError(f"views must be two integers (large, small), got {views!r}")
    large, small = views
    if large < 1 or small < 0:
        raise ValueError(f"views must have at least one large crop and no negative number, got {tuple(views)}")
    if (large, small) == (1, 0) and not self_pairs:
        raise ValueError("views=(1, 0) has no pair of different views: add views or set self_pairs=True")
    return large, small


def _check_negatives(negatives: Tensor, device: torch.device) -> None:
    if not isinstance(negatives, Tensor) or negatives.dtype != torch.int64 or negatives.dim() != 1:
        kind = f"{negatives.dtype} {tuple(negatives.shape)}" if isinstance(negatives, Tensor) else check.kind(negatives)
        raise ValueError(f"negatives must be an int64 tensor [n] of images, got {kind}")
    if negatives.device != device:
        raise ValueError(f"negatives must be on the device of online, {device}, got {negatives.device}")
