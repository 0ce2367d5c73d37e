"""What a network computes and moves for an image, read off the network itself.

It runs forward and backward on tensors without storage (torch's meta device), and every operation that reaches the
device is noted: the products that it multiplies and the bytes that it reads and writes. The batch is a large prime
number of images, so that a tensor belongs to the batch exactly if its size is a multiple of that.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

IMAGES = 8191
"""Images that pass through: a prime."""

_aten = torch.ops.aten
_SILENT = ("empty", "new_empty", "_unsafe_view", "detach", "_local_scalar_dense", "sym_")
"""Operations that move nothing, beside views."""
TRANSPOSE = "transpose"
"""Work of a convolution whose images are not channels-last: tensor cores take no other layout, so that its images are
turned on the way in and out. Only such runs do it."""


@dataclass(frozen=True)
class Work:
    """One operation: for b images `flops`·b FLOPs of products (2 a multiply-add) and `each`·b + `fixed` bytes moved."""

    name: str
    flops: float = 0.0
    each: float = 0.0
    fixed: float = 0.0

    def bytes(self, images: float) -> float:
        return self.each * images + self.fixed


@dataclass(frozen=True)
class Saved:
    """Bytes that the backward pass waits for: `each` an image, and `fixed`."""

    each: float
    fixed: float


class Recorder(TorchDispatchMode):
    """Notes the work of every operation within, and the bytes an image that live at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.work: list[Work] = []
        self.peak = self._now = 0.0
        self._living: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not _moves_nothing(func):
            self._note(func, args, kwargs, out)
        for tensor in _tensors(out):
            self._allocate(tensor)
        return out

    def _allocate(self, tensor: Tensor) -> None:
        """Count a new storage until nobody holds it."""
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._living or tensor.numel() % IMAGES:
            return
        size = storage.nbytes() / IMAGES
        self._living.add(address)
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._free, address, size)

    def _free(self, address: int, size: float) -> None:
        self._living.discard(address)
        self._now -= size

    def _note(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        name, packet = func.overloadpacket.__name__, func.overloadpacket
        reads, writes = _tensors((args, kwargs)), _tensors(out)
        if packet is _aten.convolution:
            flops = _convolution(args[0], args[1], out, transposed=args[6])
            self._product(name, (*reads, *writes), (args[0], out), flops)
        elif packet is _aten.convolution_backward:
            self._convolution_backward(args, out)
        else:
            if packet is _aten.native_batch_norm and args[5]:
                reads.append(args[0])  # once for the statistics, once to apply them
            elif packet is _aten.native_batch_norm_backward and args[7]:
                reads += args[:2]
            count = flop_registry.get(packet)
            self._add(name, (*reads, *writes), float(count(*args, **kwargs, out_val=out)) if count else 0.0)

    def _convolution_backward(self, args: Any, out: Any) -> None:
        """Two products: the gradients of the input and of the weight."""
        gradient, input, weight = args[:3]
        flops = _convolution(input, weight, gradient, transposed=args[7])
        into_input, into_weight = out[:2]
        if into_input is not None:
            moved = (gradient, weight, into_input)
            self._product("convolution_backward_input", moved, (gradient, into_input), flops)
        if into_weight is not None:
            self._product("convolution_backward_weight", (gradient, input, into_weight), (gradient, input), flops)

    def _product(self, name: str, moved: Iterable[Tensor], images: Iterable[Tensor], flops: float) -> None:
        self._add(name, moved, flops)
        # Read in one layout and written in the other.
        self.work.append(Work(TRANSPOSE, each=2 * split(images)[0]))

    def _add(self, name: str, tensors: Iterable[Tensor], flops: float) -> None:
        each, fixed = split(tensors)
        self.work.append(Work(name, flops / IMAGES, each, fixed))


@contextlib.contextmanager
def saved(network: nn.Module) -> Iterator[list[Tensor]]:
    """A tensor of every storage that autograd keeps within, but not of the parameters and buffers of `network`."""
    own = {_storage(t) for t in (*network.parameters(), *network.buffers())}
    kept: dict[int, Tensor] = {}
    found: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(_storage(tensor), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found
    found += [tensor for storage, tensor in kept.items() if storage not in own]


def saved_bytes(tensors: Iterable[Tensor]) -> Saved:
    """Of whole storages, whichever part of them was kept."""
    each = fixed = 0.0
    for tensor in tensors:
        storage = tensor.untyped_storage().nbytes()
        if tensor.numel() % IMAGES:
            fixed += storage
        else:
            each += storage / IMAGES
    return Saved(each, fixed)


def split(tensors: Iterable[Tensor]) -> tuple[float, float]:
    """Bytes an image and bytes whatever the batch; a tensor that repeats its elements has them once."""
    each = fixed = 0.0
    for tensor in tensors:
        size = min(tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes())
        if tensor.numel() % IMAGES:
            fixed += size
        else:
            each += size / IMAGES
    return each, fixed


def _convolution(input: Tensor, weight: Tensor, output: Tensor, *, transposed: bool) -> float:
    """FLOPs; weights are [out, in / groups, ...], or [in, out / groups, ...] of a transposed one."""
    positions = (input if transposed else output).numel()
    return 2.0 * positions * weight[0].numel()


def _tensors(tree: Any) -> list[Tensor]:
    """Each once."""
    return list({id(leaf): leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}.values())


@cache
def _moves_nothing(func: Any) -> bool:
    views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
    return views or func.overloadpacket.__name__.startswith(_SILENT)


def _storage(tensor: Tensor) -> int:
    """Identity of a storage, which has no address on the meta device."""
    return tensor.untyped_storage()._cdata
