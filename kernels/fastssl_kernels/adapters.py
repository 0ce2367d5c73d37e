"""Names and signatures that people already type, on top of the functions of this package."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .gather import Group
from .nearest_neighbor import Queue, nearest_neighbor
from .nt_xent import info_nce, nt_xent
from .sinkhorn import sinkhorn
from .swapped_prediction import swapped_prediction


class NTXentLoss(nn.Module):
    """lightly's `NTXentLoss`: called with two views, [B, D] each, it returns a scalar.

    temperature: τ > 0.
    memory_bank_size: (rows, width) of a bank of past rows, which are then the only negatives, as in MoCo: `out0` is
        contrasted with `out1` and the bank, which afterwards takes in `out1` if `out0` requires a gradient. 0 for none.
        Unlike in the original the bank is in the `state_dict`, and a batch that wraps loses no row.
    gather_distributed: take the rows of all ranks as negatives, or into the bank. Unlike the original the result then
        has the gradient that data-parallel averaging turns into the exact one.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.memory_bank_size = memory_bank_size
        self.gather_distributed = gather_distributed
        none = not isinstance(memory_bank_size, Sequence) and memory_bank_size == 0
        self.queue = None if none else _bank("memory_bank_size", memory_bank_size, torch.float32)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        if out0.shape != out1.shape:
            raise ValueError(f"out1 must have the shape of out0, {tuple(out0.shape)}, got {tuple(out1.shape)}")
        group: Group = None if self.gather_distributed else "local"
        if self.queue is None:
            return nt_xent(torch.cat([out0, out1]), temperature=self.temperature, group=group)
        # The backward pass needs the rows that the bank is about to forget.
        negatives = self.queue.rows.clone()
        loss = info_nce(out0, out1, queue=negatives, temperature=self.temperature, group=group)
        if out0.requires_grad:
            self.queue.enqueue(out1, group=group)
        return loss

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, memory_bank_size={self.memory_bank_size}, "
            f"gather_distributed={self.gather_distributed}"
        )


def _bank(name: str, size: int | Sequence[int], dtype: torch.dtype) -> Queue:
    if not isinstance(size, Sequence) or len(size) != 2 or min(size) < 1:
        raise ValueError(f"{name} must be (rows, width), each at least 1, got {size!r}")
    return Queue(*size, dtype=dtype)


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
        self.queue = _bank("size", size, dtype)
        self.size = (len(self.queue), self.queue.width)
        self.gather_distributed = gather_distributed

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
