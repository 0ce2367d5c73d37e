"""Names and signatures that people already type, on top of the functions of this package."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .gather import Group
from .nearest_neighbor import Queue, nearest_neighbor
from .nt_xent import nt_xent
from .sinkhorn import sinkhorn
from .swapped_prediction import swapped_prediction


class NTXentLoss(nn.Module):
    """lightly's `NTXentLoss` without its memory bank: called with two views, [B, D] each, it returns a scalar.

    temperature: τ > 0.
    gather_distributed: take the rows of all ranks as negatives. Unlike the original the result then has the gradient
        that data-parallel averaging turns into the exact one.
    """

    def __init__(self, temperature: float = 0.5, gather_distributed: bool = False) -> None:
        super().__init__()
        self.temperature = temperature
        self.gather_distributed = gather_distributed

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        if out0.shape != out1.shape:
            raise ValueError(f"out1 must have the shape of out0, {tuple(out0.shape)}, got {tuple(out1.shape)}")
        group: Group = None if self.gather_distributed else "local"
        return nt_xent(torch.cat([out0, out1]), temperature=self.temperature, group=group)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, gather_distributed={self.gather_distributed}"


class NNMemoryBankModule(nn.Module):
    """lightly's `NNMemoryBankModule`: called with [B, D] it returns each row's nearest neighbour in a bank [B, D].

    Unlike in the original the bank is in the `state_dict`, a batch that wraps loses no row, and rows are kept and come
    back with length one (which changes no cosine).

    size: (rows, width) of the bank; it begins with random directions.
    dtype: of the bank's rows; torch.bfloat16 takes half the memory and looks up several times faster.
    gather_distributed: let the rows of all ranks in, so that every rank has the same bank.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(size, int) or len(size) != 2 or min(size) < 1:
            raise ValueError(f"size must be (rows, width), each at least 1, got {size!r}")
        self.size = tuple(size)
        self.gather_distributed = gather_distributed
        self.queue = Queue(*self.size, dtype=dtype)

    def forward(self, output: Tensor, update: bool = False) -> Tensor:
        """Neighbours of `output` among what came before it; with `update` its rows are then let in."""
        neighbours = nearest_neighbor(output, self.queue).rows
        if update:
            self.queue.enqueue(output, group=None if self.gather_distributed else "local")
        return neighbours

    def extra_repr(self) -> str:
        return f"size={self.size}, gather_distributed={self.gather_distributed}"


class SwaVLoss(nn.Module):
    """lightly's `SwaVLoss`: called with lists of scores [B, K], it returns a scalar.

    temperature: τ > 0 of the predictions. sinkhorn_epsilon, sinkhorn_iterations: of the codes.
    sinkhorn_gather_distributed: let the rows of all ranks share the prototypes.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        sinkhorn_iterations: int = 3,
        sinkhorn_epsilon: float = 0.05,
        sinkhorn_gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.sinkhorn_iterations = sinkhorn_iterations
        self.sinkhorn_epsilon = sinkhorn_epsilon
        self.sinkhorn_gather_distributed = sinkhorn_gather_distributed

    def forward(
        self,
        high_resolution_outputs: list[Tensor],
        low_resolution_outputs: list[Tensor],
        queue_outputs: list[Tensor] | None = None,
    ) -> Tensor:
        queues = queue_outputs if queue_outputs is not None else [None] * len(high_resolution_outputs)
        if len(queues) != len(high_resolution_outputs):
            raise ValueError(
                f"queue_outputs must hold scores for each of the {len(high_resolution_outputs)} high-resolution crops, "
                f"got {len(queues)}"
            )
        codes = [
            sinkhorn(
                scores,
                epsilon=self.sinkhorn_epsilon,
                iterations=self.sinkhorn_iterations,
                queue=queue,
                group=None if self.sinkhorn_gather_distributed else "local",
            )
            for scores, queue in zip(high_resolution_outputs, queues, strict=True)
        ]
        crops = [*high_resolution_outputs, *low_resolution_outputs]
        return swapped_prediction(crops, None, codes, temperature=self.temperature, assign=range(len(codes)))

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, sinkhorn_iterations={self.sinkhorn_iterations}, "
            f"sinkhorn_epsilon={self.sinkhorn_epsilon}, "
            f"sinkhorn_gather_distributed={self.sinkhorn_gather_distributed}"
        )
