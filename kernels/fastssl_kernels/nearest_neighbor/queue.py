"""The first-in, first-out queue of embeddings that MoCo, NNCLR and SwAV keep on the device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import check
from ..gather import Group, gather_rows, group_name, size_and_rank
from ..rows import unit_rows

STORED = (torch.float32, torch.bfloat16, torch.float16)
# Rows drawn at a time: bounds the memory of construction.
DRAWN = 8192
# Keeps the first content apart from what others draw with the same small seed: a row must not find itself.
STREAM = 0x51554555


class Queue(nn.Module):
    """The last `size` embeddings, unit rows of width `width`; it begins full of random directions (MoCo, NNCLR).

    Everything is in buffers, so that `state_dict` holds the queue and `to(device)` moves it, and nothing is read back
    from the device: a step with a queue can be captured in a CUDA graph. Queues of several ranks are replicas: every
    rank enqueues the rows of all ranks, in the order of one process. (`DistributedDataParallel` copies buffers before
    every step: give it broadcast_buffers=False.)

    rows: [size, width] of `dtype`, ready for `info_nce(queue=queue.rows)` and `nearest_neighbor(z, queue)`.
    pointer: int64 scalar, where the next row goes. filled: int64 scalar, rows that were enqueued, at most `size`.

    Args:
        size, width: at least 1.
        dtype: of storage; bfloat16 (half the memory and traffic), float16 or float32.
        seed: of the first content, the same on every rank and device; or a CPU generator to draw from.
        device: of the buffers.

    Raises:
        ValueError: size or width below 1.
        TypeError: another dtype, a seed that is neither.
    """

    rows: Tensor
    pointer: Tensor
    filled: Tensor

    def __init__(
        self,
        size: int,
        width: int,
        *,
        dtype: torch.dtype = torch.bfloat16,
        seed: int | torch.Generator = 0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("size", size), ("width", width)):
            check.whole(name, value, 1)
        if dtype not in STORED:
            raise TypeError(f"dtype must be torch.float32, torch.bfloat16 or torch.float16, got {dtype}")
        if not isinstance(seed, (int, torch.Generator)):
            raise TypeError(f"seed must be an integer or a CPU generator, got {check.kind(seed)}")
        generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed ^ STREAM)
        rows = torch.empty(size, width, dtype=dtype, device=device)
        for part in rows.split(DRAWN):
            part.copy_(unit_rows(torch.randn(part.shape, generator=generator, device="cpu"))[0])
        self.register_buffer("rows", rows)
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64, device=device))

    def __len__(self) -> int:
        return self.rows.shape[0]

    @property
    def width(self) -> int:
        return self.rows.shape[1]

    @torch.no_grad()
    def enqueue(self, rows: Tensor, *, group: Group = None) -> None:
        """Let `rows` [B, width], divided by their length, take the place of the oldest B·W rows.

        They may have a gradient, which goes no further, and any floating dtype.
        group: W processes whose rows go in, ranks in order, each with the same B: None for the default group, if there
            is one, "local" for this process alone (SwAV's queue).

        Raises ValueError where shape, device or group make no sense, or more rows come than the queue holds, TypeError
        for rows that are not floating-point.
        """
        check.floating("rows", rows, TypeError)
        if rows.ndim != 2 or rows.shape[1] != self.width or len(rows) == 0:
            raise ValueError(f"rows must be [B, {self.width}] with B at least 1, got {tuple(rows.shape)}")
        if rows.device != self.rows.device:
            raise ValueError(f"rows must be on the device of the queue, {self.rows.device}, got {rows.device}")
        enqueue(self.rows, self.pointer, self.filled, rows.detach(), group_name(group))

    def newest(self, count: int) -> Tensor:
        """A copy of the `count` newest rows [count, width], the newest first; random ones where `filled` < count."""
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= len(self):
            raise ValueError(f"count must be an integer from 0 to the {len(self)} rows of the queue, got {count!r}")
        place = self.pointer - 1 - torch.arange(count, device=self.pointer.device)
        return self.rows.index_select(0, place.remainder(len(self)))

    def extra_repr(self) -> str:
        return f"{len(self)}, {self.width}, dtype={self.rows.dtype}"


@torch.library.custom_op("fastssl::enqueue", mutates_args=("queue", "pointer", "filled"))
def enqueue(queue: Tensor, pointer: Tensor, filled: Tensor, rows: Tensor, group: str) -> None:
    """Unit rows of all ranks go to `queue` from `pointer` on, around the end; `pointer` and `filled` follow."""
    incoming = len(rows) * size_and_rank(group)[0]
    if incoming > len(queue):
        raise ValueError(f"rows must fit the queue: {incoming} rows of all ranks for a queue of {len(queue)}")
    unit = gather_rows(unit_rows(rows.float())[0].to(queue.dtype), 1, group)
    place = (pointer + torch.arange(len(unit), device=pointer.device)).remainder_(len(queue))
    queue.index_copy_(0, place, unit)
    pointer.add_(len(unit)).remainder_(len(queue))
    filled.add_(len(unit)).clamp_(max=len(queue))


@enqueue.register_fake
def _(queue: Tensor, pointer: Tensor, filled: Tensor, rows: Tensor, group: str) -> None:
    return None
