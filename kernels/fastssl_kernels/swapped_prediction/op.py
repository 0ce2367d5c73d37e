"""SwAV's loss: validation and dispatch.

From features one operator returns the loss and, from the same blocks of scores, its gradients: they are linear in what
comes from upstream, so that the backward pass is a multiplication and nothing of the size of the scores is kept. From
scores that exist already, an operator for each crop returns row losses and three numbers a row for its backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import check
from ..arithmetic import product_dtype
from . import cpu


def swapped_prediction(
    z: Tensor | Sequence[Tensor],
    prototypes: Tensor | None,
    codes: Tensor | Sequence[Tensor],
    *,
    temperature: float,
    assign: Sequence[int] = (0, 1),
) -> Tensor:
    """Cross entropy of every crop's prediction against the codes of every other (SwAV, arXiv 2006.09882, eq. 2 and 6).

    z: [V·B, D] features of all V ≥ 2 crops of B images, crop-major, or a sequence of V tensors [B, D]; of unit length
        in SwAV. Any floating dtype.
    prototypes: [K, D], of unit length in SwAV. None: `z` are the scores already, [V·B, K] or V tensors [B, K].
    codes: [A, B, K] or A tensors [B, K], targets without gradient: `sinkhorn`'s, fp32.
    temperature: τ > 0; logits are scores / τ.
    assign: the crop of each of the A codes; a crop is never compared with its own.

    Returns the fp32 scalar: mean over codes, over the V − 1 other crops, over images. A mean over this process's
    images; averaging over ranks, as data-parallel training does, gives the one-process gradient. From features products
    use bf16 or fp16 operands if z or prototypes have that dtype or autocast asks for it; all else is fp32, and scores
    are never stored.

    Raises ValueError where shape, dtype, device, temperature or assign make no sense.
    """
    for name, value in (("z", z), ("codes", codes), ("assign", assign)):
        if not isinstance(value, (Tensor, Sequence)):
            wanted = "sequence of integers" if name == "assign" else "tensor or a sequence of tensors"
            raise ValueError(f"{name} must be a {wanted}, got {check.kind(value)}")
    crops = None if isinstance(z, Tensor) else list(z)
    targets = list(codes.detach().unbind()) if isinstance(codes, Tensor) and codes.dim() == 3 else codes
    if isinstance(targets, Tensor):
        raise ValueError(f"codes must be [A, B, K] or a sequence of [B, K], got shape {tuple(targets.shape)}")
    targets = [code.detach() if isinstance(code, Tensor) else code for code in targets]
    _check_codes(targets, assign)
    batch, count = targets[0].shape
    for name, tensor in [("z", z)] if isinstance(z, Tensor) else [(f"z[{i}]", crop) for i, crop in enumerate(z)]:
        check.rows(name, tensor)
    if crops is None:
        assert isinstance(z, Tensor)
        if z.shape[0] % batch:
            raise ValueError(f"z has {z.shape[0]} rows, which is not a multiple of the {batch} rows of codes")
        crops = list(z.view(-1, batch, z.shape[1]).unbind())
    _check_crops(crops, batch, count if prototypes is None else None, targets[0].device)
    _check_assign(assign, len(crops))
    check.number("temperature", temperature)
    if prototypes is None:
        return _from_scores(crops, targets, float(temperature), list(assign))
    check.rows("prototypes", prototypes)
    if prototypes.device != crops[0].device:
        raise ValueError(f"prototypes must be on the device of z, {crops[0].device}, got {prototypes.device}")
    if prototypes.shape != (count, crops[0].shape[1]):
        raise ValueError(
            f"prototypes must be [{count}, {crops[0].shape[1]}] for these codes and features, "
            f"got {tuple(prototypes.shape)}"
        )
    z = z if isinstance(z, Tensor) else torch.cat(crops)
    graph = torch.is_grad_enabled()
    loss, _, _ = torch.ops.fastssl.swapped_prediction(
        z,
        prototypes,
        codes.detach() if isinstance(codes, Tensor) else torch.stack(targets),
        float(temperature),
        list(assign),
        product_dtype(z, prototypes),
        graph and z.requires_grad,
        graph and prototypes.requires_grad,
    )
    return loss


def _from_scores(crops: list[Tensor], codes: list[Tensor], temperature: float, assign: list[int]) -> Tensor:
    everyone = torch.stack(codes).sum(0) if len(codes) > 1 and len(crops) > len(set(assign)) else codes[0]
    losses = []
    for v, scores in enumerate(crops):
        others = [code for code, i in zip(codes, assign, strict=True) if i != v]
        if others:
            if len(others) == len(codes):
                target = everyone if len(codes) > 1 else codes[0]
            else:
                target = others[0] if len(others) == 1 else torch.stack(others).sum(0)
            losses.append(torch.ops.fastssl.code_cross_entropy(scores, target, temperature)[0].sum())
    return torch.stack(losses).sum() / _terms(len(crops), len(codes), len(codes[0]))


def _terms(crops: int, codes: int, batch: int) -> int:
    """How many row losses the mean is over."""
    return codes * (crops - 1) * batch


def _check_codes(codes: list[Tensor], assign: Sequence[int]) -> None:
    if not codes:
        raise ValueError("codes must hold at least one crop's codes, got none")
    for i, code in enumerate(codes):
        check.rows(f"codes[{i}]", code)
        if code.shape != codes[0].shape or code.device != codes[0].device or code.dtype != codes[0].dtype:
            raise ValueError(
                f"codes must share shape, dtype and device, got {tuple(code.shape)} {code.dtype} on {code.device} "
                f"beside {tuple(codes[0].shape)} {codes[0].dtype} on {codes[0].device}"
            )
    if len(assign) != len(codes):
        raise ValueError(f"assign must name the crop of each of the {len(codes)} codes, got {list(assign)}")


def _check_crops(crops: list[Tensor], batch: int, width: int | None, device: torch.device) -> None:
    if len(crops) < 2:
        raise ValueError(f"z must hold at least two crops of the {batch} images of codes, got {len(crops)}")
    for i, crop in enumerate(crops):
        if crop.shape != (batch, crops[0].shape[1]):
            raise ValueError(f"crop {i} of z must be [{batch}, {crops[0].shape[1]}], got {tuple(crop.shape)}")
        if crop.device != device:
            raise ValueError(f"z must be on the device of codes, {device}, got {crop.device}")
    if width is not None and crops[0].shape[1] != width:
        raise ValueError(f"z must have the width of codes, {width}, where prototypes are None, got {crops[0].shape[1]}")


def _check_assign(assign: Sequence[int], crops: int) -> None:
    if any(type(i) is not int or not 0 <= i < crops for i in assign) or len(set(assign)) < len(assign):
        raise ValueError(f"assign must name different crops from 0 to {crops - 1}, got {list(assign)}")


@torch.library.custom_op("fastssl::swapped_prediction", mutates_args=())
def features_operator(
    z: Tensor,
    prototypes: Tensor,
    codes: Tensor,
    temperature: float,
    assign: list[int],
    products: torch.dtype,
    z_gradient: bool,
    prototype_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, and in fp32 its gradients by z [V·B, D] and prototypes [K, D], empty unless wanted."""
    with torch.cuda.device_of(z):  # kernels go to the current device
        return _backend(z).swapped_prediction(
            z, prototypes, codes, temperature, assign, products, z_gradient, prototype_gradient
        )


@features_operator.register_fake
def _(
    z: Tensor,
    prototypes: Tensor,
    codes: Tensor,
    temperature: float,
    assign: list[int],
    products: torch.dtype,
    z_gradient: bool,
    prototype_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        z.new_empty((), dtype=torch.float32),
        z.new_empty(z.shape if z_gradient else (0,), dtype=torch.float32),
        z.new_empty(prototypes.shape if prototype_gradient else (0,), dtype=torch.float32),
    )


def _features_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.dtypes = (inputs[0].dtype, inputs[1].dtype)


def _features_gradient(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    gradients = [
        (grad * saved).to(dtype) if needed else None
        for saved, dtype, needed in zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[:2], strict=True)
    ]
    return (*gradients, *(None,) * 6)


features_operator.register_autograd(_features_gradient, setup_context=_features_context)


@torch.library.custom_op("fastssl::code_cross_entropy", mutates_args=())
def scores_operator(scores: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Row losses Σ_k t (lse − s/τ) [B] of scores and targets [B, K]; [3, B]: largest logit, lse beyond it, Σ_k t."""
    with torch.cuda.device_of(scores):  # kernels go to the current device
        return _backend(scores).code_cross_entropy(scores, target, temperature)


@scores_operator.register_fake
def _(scores: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    rows = scores.shape[0]
    return scores.new_empty((rows,), dtype=torch.float32), scores.new_empty((3, rows), dtype=torch.float32)


@torch.library.custom_op("fastssl::code_cross_entropy_backward", mutates_args=())
def scores_backward_operator(
    grad: Tensor, scores: Tensor, target: Tensor, statistics: Tensor, temperature: float
) -> Tensor:
    """Gradient of the scores, in their dtype, for the gradients `grad` [B] of the row losses."""
    with torch.cuda.device_of(scores):  # kernels go to the current device
        return _backend(scores).code_cross_entropy_backward(grad, scores, target, statistics, temperature)


@scores_backward_operator.register_fake
def _(grad: Tensor, scores: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(scores, memory_format=torch.contiguous_format)


def _scores_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    scores, target, ctx.temperature = inputs
    ctx.save_for_backward(scores, target, output[1])


def _scores_gradient(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return scores_backward_operator(grad, *ctx.saved_tensors, ctx.temperature), None, None


scores_operator.register_autograd(_scores_gradient, setup_context=_scores_context)


def _backend(x: Tensor) -> ModuleType:
    if x.is_cuda:
        from . import launch  # Triton does not exist everywhere that torch does

        return launch
    if x.device.type != "cpu":
        raise NotImplementedError(f"swapped prediction runs on CPU and CUDA (or ROCm) tensors, not on {x.device.type}")
    return cpu
