"""The launch of the averaging kernel: tables of addresses, one launch a pair of dtypes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .flat import in_order_of, is_dense
from .kernel import ema_kernel
from .scalar import host_scalar
from .table import Table

# 8 loads of 128 bits in flight a thread; a chunk is long enough to pay for its row of the table.
BLOCK, WARPS = 2048, 4
CHUNK = 4 * BLOCK

# Tables of the lists that were averaged last: addresses, owners, momentum.
_tables: OrderedDict[tuple[object, ...], tuple[Table, Table, Table]] = OrderedDict()
_CACHED = 64


def kernel_type(dtype: torch.dtype) -> tl.dtype:
    return {
        torch.float64: tl.float64,
        torch.float32: tl.float32,
        torch.float16: tl.float16,
        torch.bfloat16: tl.bfloat16,
    }[dtype]


def vector(tensors: Sequence[Tensor], itemsize: int) -> int:
    """Elements in 128 bits, or 1 where a tensor does not begin at a multiple of them."""
    return 1 if any(t.data_ptr() % 16 for t in tensors) else max(1, 16 // itemsize)


def ema_launch(targets: Sequence[Tensor], onlines: Sequence[Tensor], momentum: float | Tensor) -> None:
    """Average non-empty lists of one device in place; checked by the caller."""
    staged: list[tuple[Tensor, Tensor]] = []
    by_type: dict[tuple[torch.dtype, torch.dtype], list[tuple[Tensor, Tensor]]] = {}
    for target, online in zip(targets, onlines, strict=True):
        dense = target if is_dense(target) else target.contiguous()
        if dense is not target:
            staged.append((target, dense))
        by_type.setdefault((target.dtype, online.dtype), []).append((dense, in_order_of(online, dense)))
    for pairs in by_type.values():
        _launch([t for t, _ in pairs], [o for _, o in pairs], momentum)
    for target, dense in staged:
        target.copy_(dense)
    torch.autograd.graph.increment_version(list(targets))


def _launch(targets: list[Tensor], onlines: list[Tensor], momentum: float | Tensor) -> None:
    device, kinds = targets[0].device, (targets[0].dtype, onlines[0].dtype)
    rows: list[int] = []
    owners: list[int] = []
    for i, (target, online) in enumerate(zip(targets, onlines, strict=True)):
        rows += (target.data_ptr(), online.data_ptr(), target.numel(), len(owners))
        owners += [i] * triton.cdiv(target.numel(), CHUNK)
    if not owners:
        return
    key = (device, kinds, len(targets), targets[0].data_ptr())
    tables = _tables.setdefault(key, (Table(torch.int64), Table(torch.int32), Table(torch.float64)))
    _tables.move_to_end(key)
    if len(_tables) > _CACHED:
        _tables.popitem(last=False)
    if not isinstance(momentum, Tensor) or momentum.device != device:
        momentum = tables[2].on(device, [host_scalar(momentum, "momentum")])
    wide = torch.float64 if torch.float64 in kinds else torch.float32
    with torch.cuda.device_of(targets[0]):
        ema_kernel[(len(owners),)](
            tables[0].on(device, rows),
            tables[1].on(device, owners),
            momentum,
            TARGET=kernel_type(kinds[0]),
            ONLINE=kernel_type(kinds[1]),
            WIDE=kernel_type(wide),
            CHUNK=CHUNK,
            BLOCK=BLOCK,
            VEC=vector(targets + onlines, max(t.itemsize for t in kinds)),
            num_warps=WARPS,
        )
