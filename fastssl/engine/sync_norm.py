"""Batch norm over the images of several ranks, on any device.

torch's `SyncBatchNorm` runs on CUDA only. Here is the same for the CPU: each rank's mean, variance and count are
gathered once in the forward pass and combined (Chan et al., 1979, which loses no digits as sums of squares do); two
sums a channel are added up over the ranks in the backward pass. Gradients of scale and shift stay those of the rank,
since data-parallel training averages them like all others.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class CPUSyncBatchNorm(_BatchNorm):
    """Input `[B, C, ...]`; parameters and buffers are those of the batch norm that it replaces.

    Args:
        norm: the batch norm.
        group: ranks that share statistics; None for all.
    """

    def __init__(self, norm: _BatchNorm, group: dist.ProcessGroup | None) -> None:
        super().__init__(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta"
        )
        self._parameters.update(norm._parameters)
        self._buffers.update(norm._buffers)
        self.group = group
        self.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"input must have at least two dimensions, got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        weight = input.new_ones(self.num_features) if self.weight is None else self.weight
        bias = torch.zeros_like(weight) if self.bias is None else self.bias
        out, mean, var, count = _Synchronised.apply(input, weight, bias, self.eps, self.group)
        if self.track_running_stats:
            self._follow(mean, var, count)
        return out

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Running statistics take the unbiased variance, as torch's do."""
        assert self.running_mean is not None
        assert self.running_var is not None
        batches = self.num_batches_tracked  # None while a second pass over the same images runs
        if batches is not None:
            batches += 1
        share = self.momentum if self.momentum is not None or batches is None else 1.0 / float(batches)
        assert share is not None
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(var * (count / (count - 1).clamp(min=1)), share)


class _Synchronised(torch.autograd.Function):
    """y = (x − m) / √(v + ε) · γ + β with mean m and variance v over all ranks of a group; also m, v and the count."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, group: dist.ProcessGroup | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        own_var, own_mean = torch.var_mean(x.float(), [d for d in range(x.ndim) if d != 1], correction=0)
        own = torch.cat([own_mean, own_var, own_mean.new_tensor([x.numel() // x.shape[1]])])
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, own, group=group)
        everyone = torch.stack(parts)
        counts = everyone[:, -1:]
        count = counts.sum()
        means, variances = everyone[:, :-1].chunk(2, 1)
        mean = (counts * means).sum(0) / count
        var = (counts * (variances + (means - mean) ** 2)).sum(0) / count
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps, ctx.group = eps, group
        ctx.mark_non_differentiable(mean, var, count)
        return torch.nn.functional.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), mean, var, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, mean, var, count = ctx.saved_tensors
        # With m and v held fixed: γ / √(v + ε) · dy, Σ dy · x̂ and Σ dy.
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([dweight, dbias])
        dist.all_reduce(sums, group=ctx.group)
        along, level = sums / count
        scale = (var + ctx.eps).rsqrt()
        slope = weight * along * scale * scale
        shift = weight * level * scale - slope * mean
        shape = [1, -1] + [1] * (x.ndim - 2)
        dx = dx - (shift.view(shape) + slope.view(shape) * x).to(dx.dtype)
        return dx, dweight, dbias, None, None


def synchronise(module: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Replace every batch norm inside `module` by one over the ranks of `group`, with its parameters and buffers."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            on_gpu = next(child.parameters(), torch.empty(0)).device.type == "cuda"
            shared = nn.SyncBatchNorm.convert_sync_batchnorm if on_gpu else CPUSyncBatchNorm
            setattr(module, name, shared(child, group))
        else:
            synchronise(child, group)
