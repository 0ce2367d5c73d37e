"""The processes of a run: one a device, started by torchrun, or this one alone.

Recipes state the global batch. Rank r of W takes the r-th of W equal slices of each; losses gather what they need of
the others, batch norm shares its statistics, and gradients are averaged while the backward pass still runs. So the
number of processes changes the speed, and results only by rounding.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data.views import Views
from ..errors import UserError
from ..methods import Losses, Method, StepState
from .sync_norm import synchronise

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run; `local` counts them on one machine."""

    rank: int = 0
    world: int = 1
    local: int = 0
    local_world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes what the run leaves behind."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """A GPU each."""
        if device.type != "cuda" or self.world == 1:
            return device
        if self.local >= torch.cuda.device_count():
            raise UserError(
                f"{self.local_world} processes on a machine with {torch.cuda.device_count()} GPUs: start one a GPU"
            )
        torch.cuda.set_device(self.local)
        return torch.device("cuda", self.local)

    def file(self, name: str) -> str:
        """This process's own file beside the first one's `name`: `stem.rank<r>.suffix`."""
        stem, dot, suffix = name.rpartition(".")
        return name if self.first else f"{stem}.rank{self.rank}{dot}{suffix}"

    def once(self, task: Callable[[], T]) -> T:
        """What `task` returns on the first rank, on every rank; a `UserError` there is raised on all."""
        if self.world == 1:
            return task()
        answer: list[Any] = [None, None]
        if self.first:
            try:
                answer[0] = task()
            except UserError as error:
                answer[1] = str(error)
        dist.broadcast_object_list(answer, src=0)
        if answer[1] is not None:
            raise UserError(answer[1])
        return answer[0]

    def mean(self, values: Tensor) -> Tensor:
        """Mean of `values` over the ranks, in place."""
        if self.world > 1:
            dist.all_reduce(values)
            values /= self.world
        return values

    def concatenated(self, rows: Tensor) -> Tensor:
        """CPU rows `[n_r, ...]` of all ranks, in the order of ranks, which may hold different numbers of them."""
        if self.world == 1:
            return rows
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, rows.numpy())
        return torch.cat([torch.from_numpy(part) for part in parts])

    def share(self, count: int) -> slice:
        """This rank's part of `count` things: contiguous, in the order of the ranks."""
        bounds = [count * rank // self.world for rank in (self.rank, self.rank + 1)]
        return slice(*bounds)

    def same_buffers(self, module: nn.Module) -> None:
        """Give all ranks the first one's buffers: running statistics differ where batch norm is not shared."""
        if self.world > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The ranks that torchrun's environment or an existing process group tells of.

    NCCL between GPUs, gloo between CPUs. A group that was started here ends here.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    ours = world > 1 and not dist.is_initialized()
    if ours:
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise UserError(f"WORLD_SIZE is {world} but {', '.join(missing)} is not set: start the run with torchrun")
        _start("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", world)
    try:
        if not dist.is_initialized():
            yield Ranks()
            return
        rank, world = dist.get_rank(), dist.get_world_size()
        local = int(os.environ.get("LOCAL_RANK", rank))
        yield Ranks(rank, world, local, int(os.environ.get("LOCAL_WORLD_SIZE", world)))
    finally:
        if ours:
            dist.destroy_process_group()


def _start(backend: str, world: int) -> None:
    """Begin the process group.

    torchrun may keep one store over its restarts, in which the addresses of processes that are gone would be found, so
    each restart writes under a name of its own. Launchers on several machines may count differently: there the store
    itself must be new (`TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`).
    """
    store, rank, _ = next(dist.rendezvous("env://"))
    if os.environ.get("LOCAL_WORLD_SIZE") == str(world):
        store = dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)


class Parallel:
    """A method's passes on this rank's views, with gradients averaged over the ranks as the backward pass makes them.

    Args:
        method: on its device; its batch norms are replaced, unless the method wants them apart.
        norm_ranks: neighbouring ranks that share batch-norm statistics; 0 for all.
        compress: send gradients in bfloat16, half the bytes.
    """

    def __init__(
        self, method: Method, ranks: Ranks | None = None, *, norm_ranks: int = 0, compress: bool = False
    ) -> None:
        self._module: nn.Module = _Passes(method)
        if ranks is None or ranks.world == 1:
            return
        if norm_ranks != 1 and method.shares_norm:
            synchronise(method, _neighbours(ranks, norm_ranks))
        with warnings.catch_warnings():  # the option's successor is younger than the oldest torch that is supported
            warnings.simplefilter("ignore", FutureWarning)
            self._module = DistributedDataParallel(self._module, broadcast_buffers=False, gradient_as_bucket_view=True)
        if compress:
            from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

            self._module.register_comm_hook(None, bf16_compress_hook)
        self._settle()

    def _settle(self) -> None:
        """Lay the gradients out for good, in a backward pass of nothing.

        DistributedDataParallel lays them out anew after its first pass, in the order in which they came, and where a
        gradient lies decides in which order the ranks' parts of it are added. A run that goes on from a checkpoint
        would round its first step otherwise than one that was never stopped. Now the order is that of the parameters.
        """
        self._module(None, None).backward()
        for parameter in self._module.parameters():
            parameter.grad = None

    def __call__(self, views: Views, state: StepState) -> Losses:
        """`method.loss`."""
        return self._module(views, state)

    def embed(self, views: Views) -> Tensor:
        """`method.embed`."""
        return self._module(views, None)

    def unsynchronised(self) -> contextlib.AbstractContextManager:
        """Within it, backward passes only add up gradients of this rank."""
        return self._module.no_sync() if isinstance(self._module, DistributedDataParallel) else contextlib.nullcontext()


class _Passes(nn.Module):
    """DistributedDataParallel wraps modules, by their forward pass."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, views: Views | None, state: StepState | None) -> Losses | Tensor:
        if views is None:
            return 0.0 * torch.stack([p.sum() for p in self.method.parameters() if p.requires_grad]).sum()
        return self.method.embed(views) if state is None else self.method.loss(views, state)


def _neighbours(ranks: Ranks, size: int) -> dist.ProcessGroup | None:
    if size in (0, ranks.world):
        return None
    if ranks.world % size:
        raise UserError(
            f"--train.norm-ranks {size} must divide the number of processes, {ranks.world}, or be 0 for all"
        )
    groups = [dist.new_group(list(range(first, first + size))) for first in range(0, ranks.world, size)]
    own = groups[ranks.rank // size]
    assert isinstance(own, dist.ProcessGroup)
    return own
