"""BYOL's loss: validation and dispatch.

The operator returns the row losses and, for the backward pass, cos, 1/‖p‖ and 1/‖z‖ of each row; then

    dloss_i/dp_i = −2 (ẑ_i − cos_i p̂_i) / ‖p_i‖

costs one pass over the two matrices, and nothing else of the forward pass is kept.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from .. import check

# Rows on the CPU are taken in blocks of about this many elements, which stay in the second-level cache.
BLOCK = 1 << 17
# Rows whose squared length is below this count as zero.
SMALLEST_SQUARE = 1e-30


def byol_loss(prediction: Tensor, target: Tensor, *, reduction: Literal["mean", "none"] = "mean") -> Tensor:
    """Normalised regression loss 2 − 2·cos(prediction, target); no gradient reaches the target.

    BYOL's objective is the sum of this over the two exchanges of views, in [0, 8] (arXiv 2006.07733, eq. 2).
    Arithmetic is float32 (float64 for float64 input) whatever the input and under every autocast mode.

    Args:
        prediction: [B, D], B and D at least 1, of floating dtype, not normalised.
        target: [B, D] on the same device; its dtype may differ.
        reduction: "mean" over the rows, or "none".

    Returns:
        A scalar, or [B], of float32 (float64 for float64 input).

    Raises:
        ValueError: shapes that differ or are not [B, D], another device, no rows, an unknown reduction.
        TypeError: input that is not of floating dtype.
    """
    for name, tensor in (("prediction", prediction), ("target", target)):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise TypeError(f"{name} must be of floating dtype, got {check.kind(tensor)}")
        check.floating(name, tensor, TypeError)
    if prediction.ndim != 2 or prediction.shape != target.shape:
        raise ValueError(
            f"prediction and target must have one shape [B, D], got {tuple(prediction.shape)} and {tuple(target.shape)}"
        )
    if prediction.numel() == 0:
        raise ValueError(f"prediction must have at least one row and one column, got {tuple(prediction.shape)}")
    if prediction.device != target.device:
        raise ValueError(f"target must be on {prediction.device} with prediction, got {target.device}")
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}")
    losses, _ = byol_forward(prediction, target.detach())
    return losses.mean() if reduction == "mean" else losses


def _wide(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


@torch.library.custom_op("fastssl::byol_forward", mutates_args=(), device_types="cpu")
def byol_forward(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Row losses [B] and statistics [3, B]: cos, 1/‖p‖, 1/‖z‖."""
    rows, width = prediction.shape
    wide = _wide(prediction, target)
    statistics = prediction.new_empty((3, rows), dtype=wide)
    cosine, p_inverse, z_inverse = statistics
    step = max(1, BLOCK // width)
    for start in range(0, rows, step):
        p, z = (t[start : start + step].to(wide) for t in (prediction, target))
        block = slice(start, start + step)
        torch.linalg.vecdot(p, z, out=cosine[block])
        torch.linalg.vecdot(p, p, out=p_inverse[block])
        torch.linalg.vecdot(z, z, out=z_inverse[block])
    for inverse in (p_inverse, z_inverse):
        inverse.copy_(torch.where(inverse < SMALLEST_SQUARE, 0, inverse.rsqrt()))
    cosine.mul_(p_inverse).mul_(z_inverse)
    return 2 - 2 * cosine, statistics


@byol_forward.register_kernel("cuda")
def _(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    from . import launch  # Triton does not exist everywhere that torch does

    return launch.byol_forward(prediction, target, _wide(prediction, target), SMALLEST_SQUARE)


@byol_forward.register_fake
def _(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    wide = _wide(prediction, target)
    rows = prediction.shape[0]
    return prediction.new_empty((rows,), dtype=wide), prediction.new_empty((3, rows), dtype=wide)


@torch.library.custom_op("fastssl::byol_backward", mutates_args=(), device_types="cpu")
def byol_backward(grad: Tensor, prediction: Tensor, target: Tensor, statistics: Tensor) -> Tensor:
    """Gradient of the prediction, [B, D] in its dtype, for the gradients `grad` [B] of the row losses."""
    cosine, p_inverse, z_inverse = statistics
    along_target = (-2 * grad * p_inverse * z_inverse).unsqueeze(1)
    along_prediction = (2 * grad * cosine * p_inverse * p_inverse).unsqueeze(1)
    result = torch.empty(prediction.shape, dtype=prediction.dtype, device=prediction.device)
    step = max(1, BLOCK // prediction.shape[1])
    for start in range(0, prediction.shape[0], step):
        block = slice(start, start + step)
        p, z = (t[block].to(statistics.dtype) for t in (prediction, target))
        result[block] = (z * along_target[block]).addcmul_(p, along_prediction[block])
    return result


@byol_backward.register_kernel("cuda")
def _(grad: Tensor, prediction: Tensor, target: Tensor, statistics: Tensor) -> Tensor:
    from . import launch

    return launch.byol_backward(grad, prediction, target, statistics)


@byol_backward.register_fake
def _(grad: Tensor, prediction: Tensor, target: Tensor, statistics: Tensor) -> Tensor:
    return torch.empty(prediction.shape, dtype=prediction.dtype, device=prediction.device)


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _gradient(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
    return byol_backward(grad, *ctx.saved_tensors), None


byol_forward.register_autograd(_gradient, setup_context=_context)
