"""Sinkhorn's codes: validation and dispatch.

Codes are targets: no gradient reaches scores, features or prototypes.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import check
from ..arithmetic import product_dtype
from ..gather import Group, group_name
from . import cpu


def sinkhorn(
    scores: Tensor,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    queue: Tensor | None = None,
    group: Group = None,
) -> Tensor:
    """Soft codes that assign rows to prototypes, with all prototypes used alike (SwAV, arXiv 2006.09882, eq. 3 to 5).

    scores: [B, K], or [H, B, K] for H independent problems (crops, heads), of any floating dtype; finite. Scores kept
        in 16 bit lose 0.5 % (fp16) or 4 % (bf16) of the codes at ε = 0.05: see `sinkhorn_from_features`.
    epsilon: ε > 0, the smoothness; scores are divided by it.
    iterations: N ≥ 1.
    queue: [Q, K] or [H, Q, K] scores of earlier rows (SwAV's queue): they take part, and no codes are made for them.
    group: processes whose rows share the prototypes. None is the default process group, or this process alone where
        torch.distributed is not initialised; "local" never communicates. One all-reduce of H·K numbers an iteration,
        and one before the first.

    Returns codes of the shape of `scores`, fp32; rows sum to 1. They are finite for every finite score. A prototype
    whose scores are all −∞ gets no mass. Memory beside the result: 16 MB (CPU), two rows a multiprocessor (GPU).

    Raises ValueError where shape, dtype, device, epsilon, iterations or group make no sense.
    """
    _check("scores", scores)
    _check_options(epsilon, iterations)
    if queue is not None:
        _check("queue", queue)
        _check_beside("queue", queue, "scores", scores)
        queue = _batched(queue.detach())
    batched = _batched(scores.detach())
    codes = torch.ops.fastssl.sinkhorn(batched, queue, float(epsilon), iterations, group_name(group))
    return codes.view(scores.shape)


def sinkhorn_from_features(
    z: Tensor,
    prototypes: Tensor,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    queue: Tensor | None = None,
    group: Group = None,
) -> Tensor:
    """`sinkhorn` of the scores z·prototypesᵀ, which a GPU computes again in every pass and never stores.

    z: [B, D] or [H, B, D] features, of any floating dtype; in SwAV of unit length, as are prototypes.
    prototypes: [K, D], or [H, K, D] where each of the H problems has its own (heads).
    queue: [Q, D] or [H, Q, D] features of earlier rows.
    epsilon, iterations, group: as in `sinkhorn`.

    Returns codes [B, K] or [H, B, K], fp32. Products use bf16 or fp16 operands if an argument has that dtype or
    autocast asks for it; scores are fp32 always.
    Raises ValueError where shape, dtype, device, epsilon, iterations or group make no sense.
    """
    _check("z", z)
    _check("prototypes", prototypes)
    _check_options(epsilon, iterations)
    _check_beside("prototypes", prototypes, "z", z)
    tensors = [z, prototypes]
    if queue is not None:
        _check("queue", queue)
        _check_beside("queue", queue, "z", z)
        tensors.append(queue)
        queue = _batched(queue.detach())
    products = product_dtype(*tensors)
    codes = torch.ops.fastssl.sinkhorn_from_features(
        _batched(z.detach()),
        _batched(prototypes.detach()),
        queue,
        float(epsilon),
        iterations,
        products,
        group_name(group),
    )
    return codes.view(*z.shape[:-1], prototypes.shape[-2])


def _batched(x: Tensor) -> Tensor:
    return x if x.dim() == 3 else x[None]


def _check(name: str, x: Tensor) -> None:
    check.floating(name, x)
    if x.dim() not in (2, 3):
        raise ValueError(f"{name} must have two or three dimensions, got shape {tuple(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"{name} must not be empty, got shape {tuple(x.shape)}")


def _check_beside(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """`x` belongs to the problems of `other`: equal width, device, and number of problems where it has its own."""
    if x.shape[-1] != other.shape[-1]:
        raise ValueError(f"{name} must have the width of {other_name}, {other.shape[-1]}, got {x.shape[-1]}")
    shared = name == "prototypes" and x.dim() == 2
    if not shared and x.shape[:-2] != other.shape[:-2]:
        raise ValueError(
            f"{name} must have as many dimensions and problems as {other_name} {tuple(other.shape)}, "
            f"got {tuple(x.shape)}"
        )
    if x.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, {other.device}, got {x.device}")


def _check_options(epsilon: float, iterations: int) -> None:
    check.number("epsilon", epsilon)
    check.whole("iterations", iterations, 1)


@torch.library.custom_op("fastssl::sinkhorn", mutates_args=())
def sinkhorn_operator(scores: Tensor, queue: Tensor | None, epsilon: float, iterations: int, group: str) -> Tensor:
    """Codes [H, B, K] of scores [H, B, K] beside those of a queue [H, Q, K]."""
    with torch.cuda.device_of(scores):  # kernels go to the current device
        return _backend(scores).sinkhorn(scores, queue, epsilon, iterations, group)


@sinkhorn_operator.register_fake
def _(scores: Tensor, *_: Any) -> Tensor:
    return scores.new_empty(scores.shape, dtype=torch.float32)


@torch.library.custom_op("fastssl::sinkhorn_from_features", mutates_args=())
def features_operator(
    z: Tensor,
    prototypes: Tensor,
    queue: Tensor | None,
    epsilon: float,
    iterations: int,
    products: torch.dtype,
    group: str,
) -> Tensor:
    """Codes [H, B, K] of features [H, B, D] and prototypes [1 or H, K, D]."""
    with torch.cuda.device_of(z):  # kernels go to the current device
        return _backend(z).sinkhorn_from_features(z, prototypes, queue, epsilon, iterations, products, group)


@features_operator.register_fake
def _(z: Tensor, prototypes: Tensor, *_: Any) -> Tensor:
    return z.new_empty((*z.shape[:2], prototypes.shape[1]), dtype=torch.float32)


def _backend(x: Tensor) -> ModuleType:
    if x.is_cuda:
        from . import launch  # Triton does not exist everywhere that torch does

        return launch
    if x.device.type != "cpu":
        raise NotImplementedError(f"Sinkhorn runs on CPU and CUDA (or ROCm) tensors, not on {x.device.type}")
    return cpu
